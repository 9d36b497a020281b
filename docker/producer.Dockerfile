# A service that only submits requests: no LiteLLM, no vLLM, no provider key.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY primarch_fleet primarch_fleet
RUN pip install --no-cache-dir .
USER nobody
