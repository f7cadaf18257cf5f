# The gateway in an image: docker build -t uwgate . && docker run -p 8080:8080 \
#   -v ./uwgate.ini:/etc/uwgate/uwgate.ini:ro uwgate
FROM python:3-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY uwgate ./uwgate
RUN python -m venv /opt/uwgate && /opt/uwgate/bin/pip install --no-cache-dir .

FROM python:3-slim
COPY --from=build /opt/uwgate /opt/uwgate
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin uwgate \
    && install -d -o uwgate -g uwgate /run/uwgate /etc/uwgate
ENV PATH=/opt/uwgate/bin:$PATH PYTHONUNBUFFERED=1
# By number: Kubernetes' runAsNonRoot believes no name.
USER 10001:10001
EXPOSE 8080
# uwgate is process 1: it buries orphans, and these signals mean to it what the words say.
STOPSIGNAL SIGTERM
# Asks over the control socket, which every image has, whatever the configuration says of statistics.
# Where no instance is, uwgate says 2, which Docker reserves.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD uwgate status --control /run/uwgate/control.sock || exit 1
ENTRYPOINT ["uwgate", "--control-socket", "/run/uwgate/control.sock"]
CMD ["--ini", "/etc/uwgate/uwgate.ini"]
