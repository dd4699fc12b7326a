"""Health, metrics, logs, the API key: what those see who watch a server."""

import json
import logging
from types import SimpleNamespace

import pytest
from served import served
from waiting import wait_until

from runtime.serve.logs import JsonFormatter
from runtime.serve.service import Service


def test_health_replays_the_golden_sample(server, models):
    reply = server.ask("/healthz")
    assert reply.status == 200
    assert reply.json["status"] == "ok"
    found = reply.json["models"]["softmax"]
    assert 0 <= found["golden_error"] <= found["golden_limit"]


def test_a_device_that_answers_wrongly_is_unhealthy(models, picture):
    with served({"m": models["brightness"]}) as server:
        session = server.service.store.models["m"].current.predictor._model.session
        right = session.run
        session.run = lambda batch: SimpleNamespace(probability=right(batch).probability + 0.5)
        reply = server.ask("/healthz")
        assert (reply.status, reply.json["status"]) == (503, "failed")
        assert reply.json["models"]["m"]["error"].startswith(
            "device cpu: answers the golden sample wrongly (off by 0.5, expected at most "
        )
        assert server.ask("/v2/health/ready").status == 503
        assert server.ask("/v2/health/live").status == 200


def test_a_health_check_costs_one_run_a_second(models):
    with served({"m": models["brightness"]}) as server:
        session = server.service.store.models["m"].current.predictor._model.session
        right, runs = session.run, []
        session.run = lambda batch: runs.append(1) or right(batch)
        clock = [100.0]
        import runtime.serve.service as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
            for _ in range(5):
                assert server.ask("/healthz").status == 200
            assert len(runs) == 1
            clock[0] += 1.1
            assert server.ask("/healthz").status == 200
            assert len(runs) == 2


def test_metrics_count_requests_and_stages(models, picture):
    with served({"m": models["brightness"]}, queue=7) as server:
        assert server.predict(picture).status == 200
        assert server.predict(b"no image").status == 400
        assert server.ask("/nothing/here").status == 404
        reply = server.ask("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        for line in (
            'unet_requests_total{endpoint="/v1/predict",model="m",status="200"} 1.0',
            'unet_requests_total{endpoint="/v1/predict",model="m",status="400"} 1.0',
            'unet_requests_total{endpoint="unknown",model="",status="404"} 1.0',
            'unet_request_seconds_count{endpoint="/v1/predict",model="m"} 2.0',
            'unet_stage_seconds_count{model="m",stage="infer"} 1.0',
            'unet_stage_seconds_count{model="m",stage="wait"} 1.0',
            'unet_batch_size_sum{model="m"} 1.0',
            "unet_requests_in_progress 0.0",
            "unet_queue_capacity 7.0",
        ):
            assert f"\n{line}\n" in reply.body.decode(), line


def test_a_line_of_the_log_for_each_request(models, picture, caplog):
    caplog.set_level(logging.INFO, "runtime.serve")
    with served({"m": models["brightness"]}) as server:
        reply = server.predict(picture, "?format=npy", X_Request_Id="my-1")
        assert reply.headers["x-request-id"] == "my-1"
        server.predict(b"no image", X_Request_Id='"; evil')
        wait_until(lambda: sum(one.getMessage() == "request" for one in caplog.records) == 2)
    first, second = (json.loads(JsonFormatter().format(one)) for one in caplog.records if one.getMessage() == "request")
    assert (first["id"], first["status"], first["endpoint"], first["model"]) == ("my-1", 200, "/v1/predict", "m")
    assert (first["format"], first["received"], first["sent"]) == ("npy", len(picture), len(reply.body))
    assert first["stages"]["infer"] > 0
    assert first["client"] == "127.0.0.1"
    assert (second["status"], second["stages"].keys()) == (400, {"receive"})
    assert len(second["id"]) == 16
    assert "no image" not in json.dumps(second)


def test_an_error_that_nobody_expected_is_told_in_the_log_alone(models, picture, caplog):
    with served({"m": models["brightness"]}) as server:
        session = server.service.store.models["m"].current.predictor._model.session
        session.run_steady = lambda _: 1 / 0
        reply = server.predict(picture)
    assert (reply.status, reply.error) == (500, "internal error; the server's log has it under this request_id")
    (found,) = (one for one in caplog.records if one.getMessage() == "request failed")
    line = json.loads(JsonFormatter().format(found))
    assert line["id"] == reply.json["request_id"]
    assert "ZeroDivisionError" in line["traceback"]


KEY = "correct horse"


def test_the_api_key(models, picture):
    with served({"m": models["brightness"]}, api_key=KEY) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X_API_Key": KEY + "x"}, {"Authorization": KEY}):
            reply = server.predict(picture, **headers)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), headers
        assert reply.error == (
            "API key: is missing or wrong; send the header Authorization: Bearer KEY, or X-API-Key: KEY"
        )
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"X_API_Key": KEY}):
            assert server.predict(picture, **headers).status == 200
        for path in ("/v1/models", "/v2", "/v2/models/m", "/metrics", "/v1/x"):
            assert server.ask(path).status == 401, path
            assert server.ask(path, X_API_Key=KEY).status != 401, path
        for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
            assert server.ask(path).status == 200, path
        assert server.ask("/healthz").json == {"status": "ok"}
        assert "models" in server.ask("/healthz", X_API_Key=KEY).json
        assert server.ask("/v2/health/live/../../models/m").status in (401, 404)


def test_the_openapi_document_names_every_request(server):
    document = server.ask("/openapi.json").json
    assert set(document["paths"]) >= {
        *("/v1/predict", "/v1/models", "/healthz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/{model}", "/v2/models/{model}/config", "/v2/models/{model}/infer", "/v2/models/{model}/ready"),
    }
    formats = next(one for one in document["paths"]["/v1/predict"]["post"]["parameters"] if one["name"] == "format")
    assert "cutout" in json.dumps(formats)
    assert server.ask("/docs").status == 404  # its page would load scripts from elsewhere


def test_a_service_needs_models_that_open(tmp_path):
    from runtime.errors import ModelError
    from runtime.serve.settings import ServerSettings

    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(ModelError):
        Service(ServerSettings(models=(("x", tmp_path / "x.onnx"),), device="cpu"), None)
