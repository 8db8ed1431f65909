# The coordinator alone. Build from the repository's root:
#   docker build --file deploy/compose/coordinator.Dockerfile --tag rollback-coordinator .
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package rollback-coordinator

FROM debian:12-slim
COPY --from=build /source/target/release/rollback-coordinator /usr/local/bin/
# 7443: agents and operators, mutual TLS. 7444: health, readiness and metrics, plain HTTP.
EXPOSE 7443 7444
ENTRYPOINT ["rollback-coordinator"]
