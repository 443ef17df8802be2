-- Who may do what in the database. Applied by a superuser connected to the application's database; applying it again
-- changes nothing. It has no passwords and no psql commands: `init/roles.sh` sets the passwords in a container, and
-- `headroom up` and the tests run it as it is.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['headroom_owner', 'headroom_app', 'headroom_monitor', 'headroom_pgbouncer'] LOOP
        -- Roles belong to the server: another database of it may have made them.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('ALTER DATABASE %I OWNER TO headroom_owner', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO headroom_app, headroom_monitor, headroom_pgbouncer', current_database()
    );
END
$$;

-- The owner of everything migrations make, used by the migration job only.
ALTER SCHEMA public OWNER TO headroom_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
-- A migration that waits for a lock makes everybody wait who comes after it: better it fails, and is tried again.
ALTER ROLE headroom_owner SET lock_timeout = '10s';
ALTER ROLE headroom_owner SET idle_in_transaction_session_timeout = '60s';

-- The API: data only. What migrations make later is covered, too, so no migration has to grant anything.
GRANT USAGE ON SCHEMA public TO headroom_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO headroom_app;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO headroom_app;
ALTER DEFAULT PRIVILEGES FOR ROLE headroom_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO headroom_app;
ALTER DEFAULT PRIVILEGES FOR ROLE headroom_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO headroom_app;
-- Set on the role, not by the client: PgBouncer refuses or drops such parameters of a connection.
-- A request that has taken this long has been given up by its client.
ALTER ROLE headroom_app SET statement_timeout = '10s';
-- Less than DB_POOL_TIMEOUT: a lock that stops everything empties the pool's queue before it can time out.
ALTER ROLE headroom_app SET lock_timeout = '2s';
-- A worker that hangs in the middle of a transaction must not keep its locks.
ALTER ROLE headroom_app SET idle_in_transaction_session_timeout = '10s';
-- A backend whose client is gone stops working for it. Without this a cancelled statement can run on, on a connection
-- that no pool counts.
ALTER ROLE headroom_app SET client_connection_check_interval = '1s';
-- A list joins the rows of a page, and the planner counts on the whole table's: from some size on it puts a cache under
-- the join that takes longer to set up than the page. Measured for the newest 20 of 10,000,000 posts with their authors,
-- processor time: 105 microseconds with it, 60 without; of 10,000 posts, where it is not chosen, 60.
ALTER ROLE headroom_app SET enable_memoize = off;

-- The exporter: what the server knows of itself, and none of the data. (The migration job lets it read which revisions
-- there are: migrations/env.py.)
GRANT pg_monitor TO headroom_monitor;
GRANT USAGE ON SCHEMA public TO headroom_monitor;
ALTER ROLE headroom_monitor SET statement_timeout = '2s';
DO $$
BEGIN
    -- Since PostgreSQL 16: it gets in when the others find every connection taken (reserved_connections).
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_use_reserved_connections') THEN
        GRANT pg_use_reserved_connections TO headroom_monitor;
    END IF;
END
$$;

-- PgBouncer: may ask for the password hashes of the two that connect through it, and for nothing else.
CREATE SCHEMA IF NOT EXISTS pgbouncer;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO headroom_pgbouncer;
CREATE OR REPLACE FUNCTION pgbouncer.user_lookup(i_username text, OUT uname text, OUT phash text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT rolname::text, rolpassword
    FROM pg_authid
    WHERE rolname = i_username AND rolname IN ('headroom_app', 'headroom_monitor')
        -- PgBouncer lets in by the hash alone, also on connections it has open: what the server would check besides
        -- when it is connected to is checked here.
        AND rolcanlogin AND coalesce(rolvaliduntil > now(), true)
$$;
REVOKE ALL ON FUNCTION pgbouncer.user_lookup(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgbouncer.user_lookup(text) TO headroom_pgbouncer;
