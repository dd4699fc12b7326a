"""TensorRT engines on disk: `EngineCache` lists and removes them."""

from runtime.engine_store.engine_cache import EngineCache, Entry, user_cache

__all__ = ["EngineCache", "Entry", "user_cache"]
