"""The realtime lane: a LiteLLM Router answers the lane's tasks."""

import os

# LiteLLM reads these variables on import: it must download neither a price list nor a tokenizer.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_OFFLINE_MODE", "True")
os.environ.setdefault("LITELLM_LOG", "ERROR")
