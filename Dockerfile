# One image a service, from shared layers:
#
#   base ── light ── auth, chain, aggregator, cli       every library but torch
#     └──── heavy ── model, client-node                 torch in a layer of its own, then the same libraries
#
# Final stages hold no compiler, no cache and no secret, and run as nobody in particular (uid 10001).
# `docker compose build` builds them all; `make images` prints their sizes. Libraries come by locks/, hashes checked; where
# LOCKED is 0 by version alone, for mirrors whose files are not PyPI's.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---------------------------------------------------------------------------------------------------------- base

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 concilia \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin concilia \
 && install -d -o 10001 -g 10001 /state /artifacts /identities /drawn
ENV PATH=/opt/concilia/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.title="Concilia" \
      org.opencontainers.image.description="Federated training of a skin-lesion classifier, with an audit trail" \
      org.opencontainers.image.licenses="Apache-2.0"

# ------------------------------------------------------------------------------------------------------ libraries

# What to install, split so that a changed line rebuilds no more than it must: torch's pins alone decide torch's layer.
FROM base AS pins
COPY constraints.txt deploy/image/requirements.py /pins/
COPY libs/kit/pyproject.toml /pins/kit/
COPY libs/cli/pyproject.toml /pins/cli/
COPY services/aggregator/pyproject.toml /pins/aggregator/
COPY services/auth/pyproject.toml /pins/auth/
COPY services/chain/pyproject.toml /pins/chain/
COPY services/client-node/pyproject.toml /pins/client-node/
COPY services/model/pyproject.toml /pins/model/
RUN python3 /pins/requirements.py /pins

FROM base AS libraries
ARG PIP_FLAGS=
ARG LOCKED=1
COPY --from=pins /pins/out/light.txt /pins/out/constraints.txt /pins/
COPY locks/light.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/concilia \
 && /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python install ${PIP_FLAGS} \
    $([ "${LOCKED}" = 0 ] && echo "-c /pins/constraints.txt -r /pins/light.txt" || echo "--require-hashes -r /locks/light.txt")

# TORCH_INDEX names an index of wheels without CUDA: 0.9 GB where the default ones take 5.5 GB. Their hashes are in no lock.
FROM base AS torch
ARG PIP_FLAGS=
ARG LOCKED=1
ARG TORCH_INDEX=
COPY --from=pins /pins/out/torch.txt /pins/
COPY locks/torch.txt /locks/
RUN python3 -m venv --without-pip /opt/torch \
 && pip() { python3 -m pip --python /opt/torch/bin/python "$@"; } \
 && { [ -z "${TORCH_INDEX}" ] \
      || pip install --no-cache-dir ${PIP_FLAGS} --no-deps --index-url "${TORCH_INDEX}" $(grep '^torch' /pins/torch.txt); } \
 && pip install --no-cache-dir ${PIP_FLAGS} \
    $([ "${LOCKED}" = 0 ] || [ -n "${TORCH_INDEX}" ] && echo "-c /pins/torch.txt torch torchvision opacus dp-accounting" || echo "--require-hashes -r /locks/torch.txt")

# The packages of this repository, as wheels.
FROM base AS wheels
ARG PIP_FLAGS=
ARG LOCKED=1
COPY --from=pins /pins/out/constraints.txt /pins/
COPY locks/build.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/build \
 && /usr/local/bin/python3 -m pip --python /opt/build/bin/python install ${PIP_FLAGS} \
    $([ "${LOCKED}" = 0 ] && echo "-c /pins/constraints.txt pip setuptools wheel ziglang" || echo "--require-hashes -r /locks/build.txt")
COPY contracts/build /src/contracts/build
COPY libs /src/libs
COPY services /src/services
RUN /opt/build/bin/python -m pip wheel --no-index --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheels \
    /src/libs/* /src/services/*

# ------------------------------------------------------------------------------------------------ shared runtimes

FROM base AS light
COPY --from=libraries /opt/concilia /opt/concilia
COPY --chmod=0755 deploy/image/ready /usr/local/bin/ready

FROM base AS heavy
COPY --from=torch /opt/torch /opt/torch
COPY --from=libraries /opt/concilia /opt/concilia
RUN echo /opt/torch/lib/python3.11/site-packages >/opt/concilia/lib/python3.11/site-packages/torch.pth
COPY --chmod=0755 deploy/image/ready /usr/local/bin/ready

# ------------------------------------------------------------------------------------------------------- services

FROM light AS auth
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_auth-*.whl
USER 10001:10001
ENTRYPOINT ["python", "-m", "concilia_auth"]

FROM light AS chain
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_chain-*.whl
USER 10001:10001
ENTRYPOINT ["python", "-m", "concilia_chain"]

FROM light AS aggregator
ARG CODE_VERSION=
ENV CONCILIA_AGGREGATOR_CODE_VERSION=${CODE_VERSION}
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_aggregator-*.whl
USER 10001:10001
ENTRYPOINT ["python", "-m", "concilia_aggregator"]
CMD ["api"]

FROM light AS cli
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_aggregator-*.whl \
    /wheels/concilia_cli-*.whl
USER 10001:10001
ENTRYPOINT ["concilia"]

FROM heavy AS model
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_model-*.whl
USER 10001:10001
ENTRYPOINT ["python", "-m", "concilia_model"]

FROM heavy AS client-node
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels /usr/local/bin/python3 -m pip --python /opt/concilia/bin/python \
    install --no-index --no-deps --no-cache-dir /wheels/concilia_kit-*.whl /wheels/concilia_client_node-*.whl
USER 10001:10001
ENTRYPOINT ["python", "-m", "concilia_client_node"]

# ------------------------------------------------------------------------------------------------------ front door

# The pages: npm packages by the lock file, bundled. Nothing of this stage but its output goes further.
FROM node:20-bookworm-slim AS pages
WORKDIR /src
COPY frontend/package.json frontend/package-lock.json frontend/.npmrc ./
RUN --mount=type=cache,target=/root/.npm npm ci --no-audit --no-fund
COPY frontend ./
RUN npm run build

FROM nginx:stable-bookworm AS frontend
COPY deploy/frontend/nginx.conf deploy/frontend/proxy.conf deploy/frontend/api-headers.conf deploy/frontend/cookieless.conf deploy/frontend/headers.conf /etc/nginx/
COPY --from=pages /src/dist /usr/share/concilia
USER 10001:10001
EXPOSE 8443

# ------------------------------------------------------------------------------------- the development profile's EVM

# The public image runs as root and knows no data folder; this one owns its volume without being root.
FROM trufflesuite/ganache:v7.9.2 AS ganache
RUN mkdir -p /data && chown 10001:10001 /data
USER 10001:10001
