// Fastify and postgres.js: response schemas, no validation beyond what runs, no metrics, no log, no bounds.
// A cluster of WORKERS processes, each with up to 15 connections, over which postgres.js pipelines statements.
import cluster from "node:cluster";
import process from "node:process";
import { createVerifier } from "fast-jwt";
import Fastify from "fastify";
import postgres from "postgres";

const { DATABASE_URL, PORT, SECRET_KEY, WORKERS } = process.env;

const author = { type: "object", properties: { id: { type: "integer" }, name: { type: "string" } } };
const text = { type: "string" };
const user = { type: "object", properties: { id: { type: "integer" }, name: text, created_at: text } };
const post = {
  type: "object",
  properties: { id: { type: "integer" }, title: text, content: text, author, created_at: text, updated_at: text },
};
const page = {
  type: "object",
  properties: {
    items: { type: "array", items: post },
    limit: { type: "integer" },
    has_more: { type: "boolean" },
    next_cursor: { type: ["string", "null"] },
  },
};

function postOf(row) {
  const { author_id: id, name, ...columns } = row;
  return { ...columns, author: { id, name } };
}

async function serve() {
  // bigint as a number, and times as PostgreSQL's text in ISO 8601, without a Date in between.
  const iso = { to: 1184, from: [1184], serialize: String, parse: (value) => value.replace(" ", "T") + ":00" };
  const sql = postgres(DATABASE_URL, {
    max: 15,
    types: { bigint: { to: 20, from: [20], serialize: String, parse: Number }, iso },
    connection: { TimeZone: "UTC" },
  });
  const verify = createVerifier({ key: SECRET_KEY, algorithms: ["HS256"], allowedIss: "headroom", allowedAud: "headroom-api" });
  const app = Fastify();

  app.get("/livez", async () => ({}));

  app.get("/users/:id", { schema: { response: { 200: user } } }, async (request, reply) => {
    const [row] = await sql`SELECT id, name, created_at FROM users WHERE id = ${request.params.id}`;
    return row ?? reply.code(404).send();
  });

  app.get("/posts", { schema: { response: { 200: page } } }, async (request) => {
    const limit = Number(request.query.limit);
    const rows = await sql`
      SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at
      FROM posts p JOIN users u ON u.id = p.author_id
      ORDER BY p.created_at DESC, p.id DESC LIMIT ${limit + 1}`;
    const items = rows.slice(0, limit).map(postOf);
    const last = items.at(-1);
    const has_more = rows.length > limit;
    const cursor = Buffer.from(JSON.stringify([last.created_at, last.id])).toString("base64url");
    return { items, limit, has_more, next_cursor: has_more ? cursor : null };
  });

  app.get("/posts/:id", { schema: { response: { 200: post } } }, async (request, reply) => {
    const [row] = await sql`
      SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at
      FROM posts p JOIN users u ON u.id = p.author_id WHERE p.id = ${request.params.id}`;
    return row ? postOf(row) : reply.code(404).send();
  });

  app.post("/posts", { schema: { response: { 201: post } } }, async (request, reply) => {
    let claims;
    try {
      claims = verify((request.headers.authorization ?? "").replace(/^Bearer /, ""));
    } catch {
      return reply.code(401).send();
    }
    const { title, content } = request.body;
    const [row] = await sql`
      WITH u AS (SELECT id, name FROM users WHERE id = ${claims.sub} AND deactivated_at IS NULL),
           p AS (INSERT INTO posts (author_id, title, content) SELECT id, ${title}, ${content} FROM u RETURNING *)
      SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at FROM p, u`;
    return row ? reply.code(201).header("location", `/posts/${row.id}`).send(postOf(row)) : reply.code(401).send();
  });

  await app.listen({ host: "127.0.0.1", port: Number(PORT) });
}

if (cluster.isPrimary) {
  for (let number = 0; number < Number(WORKERS); number += 1) cluster.fork();
  process.on("SIGTERM", () => {
    for (const worker of Object.values(cluster.workers)) worker.process.kill();
    process.exit(0);
  });
} else {
  await serve();
}
