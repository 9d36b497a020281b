# The realtime and the batch lane, beat and Flower: one image; the command selects the process.
FROM python:3.12-slim
RUN useradd --create-home fleet && mkdir /data && chown fleet /data
WORKDIR /fleet
COPY requirements/fleet.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/fleet.lock
COPY primarch_fleet primarch_fleet
COPY config config
COPY tasks tasks
COPY workers workers
COPY scheduler scheduler
COPY api api
USER fleet
ENV FLEET_DATA_DIR=/data \
    FLEET_METRICS_HOST=0.0.0.0 \
    FLEET_METRICS_PORT=9464
EXPOSE 9464
# On SIGTERM a worker drains: allow it more than FLEET_DRAIN_TIMEOUT before it is killed.
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "workers.realtime.app", "worker", "-n", "realtime@%h"]
