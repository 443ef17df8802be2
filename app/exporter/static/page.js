// The live page. Asks for live.json again and again, and changes in the document only what has changed: focus, selection
// and a screen reader's place survive. Nothing here is markup made of data.

const ASK_EVERY_MS = 1000;
const ANSWER_WITHIN_MS = 3000;
const STALE_AFTER_SECONDS = 6; // three looks of the exporter

const SEGMENTS = {
  used: "used by requests",
  overflow: "used beyond the pools' size",
  idle: "idle in pools",
  other: "open, not the pools'",
  promised: "promised, not open",
  free: "free",
  reserved: "reserved",
};
const DURATIONS = { wait: "waiting for a connection", use: "holding it", create: "opening one", ping: "testing one" };
const MARKS = { ok: "✓", firing: "▲", unknown: "?" };

const $ = (id) => document.getElementById(id);

/** Sets the text of an element, if it is another one. */
function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** A new element with a class, an optional text and children. */
function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/**
 * Makes the children of `parent` those of `items`, in their order; an item that was there keeps its element.
 * @param {(item: any) => string} key @param {(item: any) => Element} create @param {(element: any, item: any) => void} fill
 */
function keyed(parent, items, key, create, fill) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = old.get(name);
    old.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    fill(element, item);
  }
  for (const element of old.values()) element.remove();
}

const plural = (number, one, many = `${one}s`) => `${number} ${Math.abs(number) === 1 ? one : many}`;

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(1)} s`;
}

function age(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const rate = (value) => (value == null ? "–" : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));
const megabytes = (bytes) => (bytes == null ? "–" : `${Math.round(bytes / 1e6)} MB`);

// ---- parts of the page ----

function showHero(data) {
  const tightest = data.limits.reduce((a, b) => (b.headroom < a.headroom ? b : a));
  const over = tightest.headroom < 0;
  const words = over
    ? `${plural(-tightest.headroom, "connection")} over budget`
    : `${tightest.headroom === 1 ? "connection" : "connections"} of headroom`;
  say($("headroom"), String(tightest.headroom).replace("-", "−"));
  say($("headroom-words"), words);
  $("headroom").parentElement.dataset.state = over ? "over" : "within";
  const open = tightest.observed == null ? "How many are open is not known" : `${tightest.observed} open now`;
  const waiting = data.pools.pending ? ` ${plural(data.pools.pending, "request waits", "requests wait")} for one.` : "";
  say(
    $("hero-detail"),
    `${open}; at the worst ${tightest.demand} of the ${tightest.supply} ${tightest.name} that are admitted.${waiting}`,
  );
  const used = `${data.pools.used}/${data.pools.max}`;
  document.title = over ? "OVER BUDGET · Headroom" : `${tightest.headroom} free · ${used} used · Headroom`;
  $("remarks").hidden = data.remarks.length === 0;
  keyed($("remarks"), data.remarks, (text) => text, () => make("li"), say);
}

/** A bar of segments, each as wide as its number. */
function fillBar(bar, segments) {
  keyed(
    bar,
    segments,
    (segment) => segment.key,
    (segment) => make("span", segment.key),
    (element, segment) => {
      element.style.flexGrow = segment.connections; // through the object model: the policy forbids style attributes
      element.hidden = segment.connections === 0;
    },
  );
}

function showLimits(limits) {
  keyed(
    $("limits"),
    limits,
    (limit) => limit.name,
    () => {
      const bar = make("div", "bar");
      bar.setAttribute("aria-hidden", "true"); // the legend says it in words
      const more = make("details", "", make("summary", "", "how it adds up"), make("p"), make("code"));
      return make("div", "limit", make("h3", "", make("b"), make("span")), bar, make("ul", "legend"), more);
    },
    (element, limit) => {
      const [heading, bar, legend, more] = element.children;
      say(heading.firstElementChild, limit.name[0].toUpperCase() + limit.name.slice(1));
      const rest = limit.ok ? `${limit.headroom} left` : `${-limit.headroom} too many`;
      say(heading.lastElementChild, `${limit.demand} promised of ${limit.supply}, ${rest}`);
      fillBar(bar, limit.segments);
      keyed(
        legend,
        limit.segments.filter((segment) => segment.connections > 0 || segment.key === "used"),
        (segment) => segment.key,
        (segment) => make("li", "", make("i", segment.key), make("span", "", SEGMENTS[segment.key]), make("b")),
        (item, segment) => say(item.lastElementChild, segment.connections),
      );
      say(more.children[1], limit.terms.map((term) => `${term.name} ${term.connections}`).join(" · "));
      say(more.children[2], limit.formula);
    },
  );
}

function showConditions(conditions) {
  const rank = { firing: 0, unknown: 1, ok: 2 };
  const sorted = [...conditions].sort((a, b) => rank[a.state] - rank[b.state]);
  const firing = sorted.filter((condition) => condition.state === "firing").map((condition) => condition.name);
  say($("hero-alert"), firing.join(" · ")); // read out when it changes
  say($("conditions-summary"), `${firing.length || "none"} of ${conditions.length} firing`);
  keyed(
    $("conditions"),
    sorted,
    (condition) => condition.name,
    () => {
      const mark = make("span", "mark");
      mark.setAttribute("role", "img");
      return make(
        "li",
        "",
        make("div", "head", mark, make("span", "label"), make("span", "value")),
        make("p", "runbook"),
      );
    },
    (element, condition) => {
      const [mark, label, value] = element.firstElementChild.children;
      element.dataset.state = condition.state;
      element.dataset.severity = condition.severity;
      mark.setAttribute("aria-label", condition.state);
      say(mark, MARKS[condition.state]);
      say(label, condition.name);
      element.title = condition.summary;
      say(value, condition.value);
      const advice = element.lastElementChild;
      advice.hidden = condition.state !== "firing";
      say(advice, `${condition.summary}. ${condition.runbook}`);
    },
  );
}

function showDurations(durations) {
  keyed(
    $("durations"),
    durations,
    (row) => row.key,
    (row) => {
      const name = make("th", "", DURATIONS[row.key]);
      name.scope = "row";
      return make("tr", "", name, make("td", "number"), make("td", "number"), make("td", "number"));
    },
    (element, row) => {
      const [, p50, p99, perSecond] = element.children;
      say(p50, duration(row.p50));
      say(p99, duration(row.p99));
      say(perSecond, rate(row.per_second));
    },
  );
}

function showWorkers(workers, pools, server, now) {
  const difference = server?.disagreement;
  const beside =
    difference == null ? "" : difference === 0 ? "; the server counts the same" : `; the server counts ${difference > 0 ? "+" : "−"}${Math.abs(difference)}`;
  say(
    $("workers-summary"),
    workers.length
      ? `${plural(workers.length, "worker")}: ${pools.used + pools.idle} connections open of ${pools.max}${beside}`
      : "No worker has reported yet: is the API running, with the same METRICS_DIR?",
  );
  keyed(
    $("workers"),
    workers,
    (worker) => `${worker.replica}/${worker.worker}`,
    (worker) => {
      const row = make("tr");
      const replica = make("th", "", worker.replica);
      replica.scope = "row";
      const bar = make("div", "bar small");
      bar.setAttribute("aria-hidden", "true");
      row.append(replica, make("td", "", worker.worker), make("td", "", bar));
      for (let column = 0; column < 7; column += 1) row.append(make("td", "number"));
      return row;
    },
    (row, worker) => {
      const cells = [...row.children];
      const beyond = Math.max(0, worker.used - worker.size);
      fillBar(cells[2].firstElementChild, [
        { key: "used", connections: worker.used - beyond },
        { key: "overflow", connections: beyond },
        { key: "idle", connections: worker.idle },
        { key: "promised", connections: Math.max(0, worker.max - worker.used - worker.idle) },
      ]);
      [
        worker.used,
        worker.idle,
        worker.max,
        worker.pending,
        worker.in_flight ?? "–",
        megabytes(worker.memory_bytes),
        worker.started == null ? "–" : age(now - worker.started),
      ].forEach((value, index) => say(cells[index + 3], value));
      cells[3].classList.toggle("loud", worker.used >= worker.max);
      cells[6].classList.toggle("loud", worker.pending > 0);
    },
  );
}

// ---- charts ----

const WIDTH = 300;
const HEIGHT = 80;
const CHARTS = [
  { key: "open", title: "Connections, open and used", show: (value) => value, also: "used", most: true },
  { key: "pending", title: "Requests waiting", show: (value) => value },
  { key: "checkouts_per_second", title: "Checkouts a second", show: rate },
  { key: "wait_p99", title: "Wait, p99", show: duration },
];

/** An SVG path through the values; a null is a gap. */
function path(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let pen = "M";
  let drawn = "";
  values.forEach((value, index) => {
    if (value == null) {
      pen = "M";
      return;
    }
    drawn += `${pen}${(index * step).toFixed(1)} ${(HEIGHT - 3 - (value / top) * (HEIGHT - 8)).toFixed(1)}`;
    pen = "L";
  });
  return drawn;
}

function showCharts(history, pools) {
  keyed(
    $("charts"),
    CHARTS,
    (chart) => chart.key,
    (chart) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("class", "chart");
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true"); // the caption says it in words
      for (const line of ["most", "second", "first"]) {
        const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
        element.setAttribute("class", line);
        svg.append(element);
      }
      return make("figure", "", make("figcaption", "", make("b", "", chart.title), make("span")), svg);
    },
    (figure, chart) => {
      const values = history[chart.key] ?? [];
      const known = values.filter((value) => value != null);
      const highest = Math.max(0, ...known, chart.most ? pools.max : 0);
      const top = highest || 1;
      const now = values.at(-1);
      const also = chart.also ? `, ${history[chart.also].at(-1) ?? "–"} used` : "";
      say(
        figure.querySelector("span"),
        known.length
          ? `now ${now == null ? "–" : chart.show(now)}${also}; ${chart.show(Math.min(...known))} to ${chart.show(Math.max(...known))}`
          : "nothing yet",
      );
      const [most, second, first] = figure.querySelectorAll("path");
      // Open beside used: the quiet line is what is open.
      first.setAttribute("d", path(chart.also ? history[chart.also] : values, top));
      second.setAttribute("d", chart.also ? path(values, top) : "");
      most.setAttribute("d", chart.most && pools.max ? path([pools.max, pools.max], top) : "");
    },
  );
}

// ---- keeping up ----

let lastTime = null;
let lastSeen = performance.now();

function show(data) {
  if (data.time == null || data.limits == null) return; // the exporter has just started
  if (data.time !== lastTime) {
    lastTime = data.time;
    lastSeen = performance.now();
    showHero(data);
    showLimits(data.limits);
    showConditions(data.conditions);
    showDurations(data.durations);
    showWorkers(data.workers, data.pools, data.server, data.time);
    showCharts(data.history, data.pools);
    const failing = data.collectors.filter((collector) => !collector.success).map((collector) => collector.name);
    say($("collectors"), failing.length ? `No answer from: ${failing.join(", ")}` : "Every collector answers");
    say($("version"), data.version);
  }
}

/** By the clock of this browser since the last new data: the exporter's clock may be another one. */
function showFreshness() {
  const seconds = (performance.now() - lastSeen) / 1000;
  const stale = seconds > STALE_AFTER_SECONDS;
  const status = $("status");
  document.documentElement.toggleAttribute("data-stale", stale);
  status.dataset.state = stale ? "stale" : lastTime == null ? "connecting" : "live";
  if (stale) {
    // In steps of ten seconds: a screen reader reads each change out.
    const told = seconds < 10 ? Math.round(seconds) : Math.floor(seconds / 10) * 10;
    say(status, lastTime == null ? "no answer from the exporter" : `stale: the last new numbers came ${age(told)} ago`);
    if (!document.title.startsWith("STALE")) document.title = `STALE · ${document.title}`;
  } else {
    say(status, lastTime == null ? "connecting" : "live");
    if (document.title.startsWith("STALE")) document.title = document.title.replace("STALE · ", "");
  }
}

async function ask() {
  if (!document.hidden) {
    try {
      const answer = await fetch("live.json", { signal: AbortSignal.timeout(ANSWER_WITHIN_MS), cache: "no-store" });
      if (answer.ok) show(await answer.json());
    } catch (error) {
      // Not an answer: showFreshness() tells, once it has lasted. What is not the network's doing is ours.
      if (!(error instanceof TypeError || error instanceof DOMException || error instanceof SyntaxError)) throw error;
    }
    showFreshness();
  }
  setTimeout(ask, ASK_EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) lastSeen = performance.now(); // asleep is not stale: give it time to ask
});
ask();
