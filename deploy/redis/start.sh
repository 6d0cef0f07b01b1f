# Redis for Compose: over TLS alone, one user a service. All of it goes through a file in memory: arguments would show in
# every list of processes.
set -eu
umask 077

{
  cat <<'END'
port 0
tls-port 6379
tls-cert-file /run/secrets/redis.pem
tls-key-file /run/secrets/redis.key
tls-ca-cert-file /run/secrets/redis.pem
tls-auth-clients no
tls-protocols "TLSv1.2 TLSv1.3"
dir /data
appendonly yes
maxmemory-policy noeviction
END
  rules=$(cat /redis/users.conf)
  for name in redis_auth redis_chain redis_aggregator; do
    hash=$(sha256sum "/run/secrets/$name")
    rules=$(printf '%s' "$rules" | sed "s/{$name}/${hash%% *}/")
  done
  printf '%s\n' "$rules"
} >/tmp/redis.conf
exec redis-server /tmp/redis.conf
