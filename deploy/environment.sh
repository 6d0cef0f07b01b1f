# Sourced by the scripts beside it: what .env says, but for what the caller's environment says already, as Compose has it.
if [ -f .env ]; then
  while IFS='=' read -r name value; do
    [ -n "${!name+set}" ] || export "$name=$value"
  done < <(grep -E '^[A-Z_]+=' .env)
fi
project=${COMPOSE_PROJECT_NAME:-concilia}
secrets=${CONCILIA_SECRETS:-./var/secrets}
version=${CONCILIA_VERSION:-dev}
