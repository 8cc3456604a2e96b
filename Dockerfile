# steelsight serve: wheels are made in the first stage, the second has no compiler and no internet.
#
#   docker build --tag steelsight .
#   docker run --read-only --tmpfs /tmp --volume steelsight-data:/data --publish 8765:8765 \
#     --stop-timeout 60 --mount type=bind,src=/etc/steelsight/token,dst=/run/secrets/steelsight-token,readonly \
#     steelsight
#
# docs/deploy.md says more, and what of this was run.

ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS wheelhouse
WORKDIR /src
COPY requirements/constraints.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY src src
# As `make wheelhouse`.
RUN python -m pip --disable-pip-version-check --no-cache-dir wheel --wheel-dir /wheelhouse \
      --constraint requirements/constraints.txt '.[service]'

FROM python:${PYTHON}
# Files in a volume belong to this number: it must not change with the base image.
RUN groupadd --gid 10765 steelsight \
 && useradd --uid 10765 --gid 10765 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin steelsight \
 && install --directory --owner steelsight --group steelsight /data
RUN --mount=type=bind,from=wheelhouse,source=/wheelhouse,target=/wheelhouse \
    python -m pip --disable-pip-version-check --no-cache-dir install --no-index \
      --find-links /wheelhouse 'steelsight[service]'

# ONNX Runtime would write down an id of this machine, and send it and figures to Microsoft.
ENV ORT_DISABLE_TELEMETRY=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10765:10765
WORKDIR /data
VOLUME /data
EXPOSE 8765

# /v2/health/live needs no token. The image has no curl.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/v2/health/live', timeout=4)"]

# No shell between: SIGTERM reaches the service, which answers what it has taken (30 s at most).
STOPSIGNAL SIGTERM
ENTRYPOINT ["steelsight", "serve", "--host", "0.0.0.0", "--data", "/data", "--token-file", "/run/secrets/steelsight-token"]
