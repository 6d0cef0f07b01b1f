# One database and one login a service on one server, each login allowed into its own database only.
# Safe to run again: what exists is left as it is, passwords are set to what the secrets say.
set -eu
export PGHOST="${PGHOST:-postgres}" PGUSER="${PGUSER:-postgres}" PGPASSFILE=/tmp/pgpass
umask 077
printf '%s:*:*:%s:%s\n' "$PGHOST" "$PGUSER" "$(cat /run/secrets/postgres)" >"$PGPASSFILE"

for name in model aggregator chain; do
  # psql takes the password from its file: it stands in no argument and no environment.
  NAME=$name psql -v ON_ERROR_STOP=1 -v name="$name" -d postgres -q <<'SQL'
\set password `cat "/run/secrets/db_$NAME"`
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
GRANT ALL ON DATABASE :"name" TO :"name";
SQL
done
psql -v ON_ERROR_STOP=1 -d postgres -q -c 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC' -c 'REVOKE CONNECT ON DATABASE template1 FROM PUBLIC'
echo "databases: model, aggregator, chain"
