# The realtime and batch lanes, beat and Flower: one image, the command says which.
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
USER fleet
ENV FLEET_DATA_DIR=/data \
    FLEET_METRICS_HOST=0.0.0.0 \
    FLEET_METRICS_PORT=9464
EXPOSE 9464
# A warm stop drains: give it longer than FLEET_DRAIN_TIMEOUT before the container is killed.
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "workers.realtime.app", "worker", "-n", "realtime@%h"]
