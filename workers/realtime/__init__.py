"""The realtime lane: LiteLLM's Router behind the lane's tasks."""

import os

# LiteLLM reads these when it is imported: no price list and no tokenizer is fetched from anywhere.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_OFFLINE_MODE", "True")
os.environ.setdefault("LITELLM_LOG", "ERROR")
