-- The roles and their privileges. A superuser applies this file to the application's database, or on a server elsewhere
-- an administrator with CREATEROLE who owns that database (docs/external-postgres.md). The file is idempotent.
-- It contains no passwords (`init/roles.sh` sets them) and no psql commands (`headroom up` and the tests execute it).

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'headroom_owner', 'headroom_app', 'headroom_app_2', 'headroom_monitor', 'headroom_pgbouncer',
        'headroom_pgbouncer_2'
    ] LOOP
        -- Roles belong to the server: they may exist because of another database.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
    -- An administrator without superuser may hand objects only to a role that it is a member of.
    IF NOT current_setting('is_superuser')::boolean AND NOT pg_has_role('headroom_owner', 'USAGE') THEN
        EXECUTE format('GRANT headroom_owner TO %I', current_user);
    END IF;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('ALTER DATABASE %I OWNER TO headroom_owner', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO headroom_app, headroom_monitor, headroom_pgbouncer', current_database()
    );
END
$$;

-- The owner of all objects that migrations create. Only the migration job uses it.
ALTER SCHEMA public OWNER TO headroom_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
-- A migration that waits for a lock blocks all later statements on the table. It fails instead, and can be retried. The
-- migration job sets a shorter limit, and the next ones too (migrations/runner.py): these are for sessions of people.
ALTER ROLE headroom_owner SET lock_timeout = '10s';
ALTER ROLE headroom_owner SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE headroom_owner SET client_connection_check_interval = '1s';

-- The API: data only. The default privileges cover later migrations, so no migration needs a GRANT.
GRANT USAGE ON SCHEMA public TO headroom_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO headroom_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO headroom_app;
ALTER DEFAULT PRIVILEGES FOR ROLE headroom_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO headroom_app;
ALTER DEFAULT PRIVILEGES FOR ROLE headroom_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO headroom_app;

-- The API's password is rotated between two roles (ops/deploy/rotation.py). A member has the privileges of
-- `headroom_app`, but not its settings.
GRANT headroom_app TO headroom_app_2;

-- Settings of the role, not of the client: PgBouncer rejects or ignores such connection parameters.
-- After this time the client of the request has given up.
ALTER ROLE headroom_app SET statement_timeout = '10s';
ALTER ROLE headroom_app_2 SET statement_timeout = '10s';
-- Shorter than DB_POOL_TIMEOUT: if a lock blocks every connection, they are returned before the queue times out.
ALTER ROLE headroom_app SET lock_timeout = '2s';
ALTER ROLE headroom_app_2 SET lock_timeout = '2s';
-- Releases the locks of a worker that hangs inside a transaction.
ALTER ROLE headroom_app SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE headroom_app_2 SET idle_in_transaction_session_timeout = '10s';
-- Stops a backend whose client has disconnected. Otherwise an abandoned statement can continue on a connection that no
-- pool counts.
ALTER ROLE headroom_app SET client_connection_check_interval = '1s';
ALTER ROLE headroom_app_2 SET client_connection_check_interval = '1s';
-- Ends a backend whose client does not acknowledge data. Keep-alive (postgresql.conf) covers only idle connections. Not
-- for other roles: a reader of a large result, such as pg_dump, may pause for longer.
ALTER ROLE headroom_app SET tcp_user_timeout = '15s';
ALTER ROLE headroom_app_2 SET tcp_user_timeout = '15s';
-- For large tables the planner adds a Memoize node to the join of a list. Its setup costs more than joining one page.
-- Measured CPU time for the newest 20 of 10,000,000 rows with a joined one: 105 microseconds with Memoize, 60 without.
ALTER ROLE headroom_app SET enable_memoize = off;
ALTER ROLE headroom_app_2 SET enable_memoize = off;
-- A statement uses one core. The expensive lane counts statements, and a parallel one uses up to three processes.
ALTER ROLE headroom_app SET max_parallel_workers_per_gather = 0;
ALTER ROLE headroom_app_2 SET max_parallel_workers_per_gather = 0;

-- The exporter: server statistics, no data. The migration job lets it read `alembic_version` (migrations/env.py).
GRANT USAGE ON SCHEMA public TO headroom_monitor;
ALTER ROLE headroom_monitor SET statement_timeout = '2s';
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT rolname AS name, grantee FROM pg_roles JOIN (VALUES
            ('pg_monitor', 'headroom_monitor'),
            -- Since PostgreSQL 16: reserved_connections let the exporter connect when all other connections are in use.
            ('pg_use_reserved_connections', 'headroom_monitor'),
            -- A migration that waits for a lock logs which transaction blocks it, with its statement.
            ('pg_read_all_stats', 'headroom_owner')
        ) AS wanted (name, grantee) ON name = rolname
    LOOP
        BEGIN
            EXECUTE format('GRANT %I TO %I', given.name, given.grantee);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING '% may not grant % to %: see docs/external-postgres.md', current_user, given.name, given.grantee;
        END;
    END LOOP;
END
$$;

-- PgBouncer: may read the password hashes of the roles that connect through it, and nothing else. Only a superuser
-- can let it. Otherwise PgBouncer gets the passwords in a file. The second role has a password only while that of the
-- first one is rotated.
GRANT headroom_pgbouncer TO headroom_pgbouncer_2;
DO $$
BEGIN
    IF NOT current_setting('is_superuser')::boolean THEN
        RETURN;
    END IF;
    CREATE SCHEMA IF NOT EXISTS pgbouncer;
    REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
    GRANT USAGE ON SCHEMA pgbouncer TO headroom_pgbouncer;
    CREATE OR REPLACE FUNCTION pgbouncer.user_lookup(i_username text, OUT uname text, OUT phash text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $lookup$
        SELECT rolname::text, rolpassword
        FROM pg_authid
        WHERE rolname = i_username AND rolname IN ('headroom_app', 'headroom_app_2', 'headroom_monitor')
            -- PgBouncer authenticates by the hash alone. The server's other checks at sign-in are repeated here, because
            -- a client can get a server connection that is already open.
            AND rolcanlogin AND coalesce(rolvaliduntil > now(), true)
    $lookup$;
    REVOKE ALL ON FUNCTION pgbouncer.user_lookup(text) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION pgbouncer.user_lookup(text) TO headroom_pgbouncer;
END
$$;
