# The local lane on a machine with GPUs: vLLM's image plus the fleet's dependencies.
FROM vllm/vllm-openai:v0.32.0
WORKDIR /fleet
RUN pip install --no-cache-dir \
    "celery>=5.7,<5.8" "kombu[redis]>=5.7,<5.8" "redis>=6.4,<9" "pydantic-settings>=2.16,<3" "prometheus-client>=0.24,<1" \
    "rich>=14,<16"
COPY primarch_fleet primarch_fleet
COPY config config
COPY tasks tasks
COPY workers workers
ENV FLEET_METRICS_HOST=0.0.0.0 \
    FLEET_METRICS_PORT=9464
EXPOSE 9464
ENTRYPOINT []
CMD ["celery", "-A", "workers.local.app", "worker", "-n", "local@%h"]
