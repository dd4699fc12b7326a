"""The key of an engine: another one for whatever makes another engine."""

from runtime.devices.engine_facts import engine_key, timing_key

MODEL = "0" * 64
FACTS = {"gpu": "Some GPU", "driver": "580.1", "tensorrt": "101300"}


def test_key_changes_with_everything_that_makes_an_engine():
    options = {"trt_fp16_enable": "0", "device_id": "0"}
    key = engine_key(MODEL, "m.onnx", FACTS, options)
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
    assert engine_key(MODEL, "m.onnx", dict(reversed(FACTS.items())), options | {"device_id": "3"}) == key
    assert timing_key(FACTS) == timing_key(dict(reversed(FACTS.items())))
    others = {engine_key(MODEL, "m.onnx", FACTS | {name: "x"}, options) for name in FACTS}
    others.add(engine_key(MODEL, "m.onnx", FACTS, options | {"trt_fp16_enable": "1"}))
    others.add(engine_key("0" * 63 + "1", "m.onnx", FACTS, options))
    others.add(engine_key(MODEL, "n.onnx", FACTS, options))
    assert len(others - {key}) == 6
