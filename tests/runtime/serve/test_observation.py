"""Health, metrics, logs, the API key: what those see who watch a server."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import served
from waiting import wait_until

from runtime.errors import ConfigError
from runtime.serve.logs import JsonFormatter
from runtime.serve.metrics import FOLDER, ServerMetrics
from runtime.serve.process import api_key
from runtime.serve.service import Service
from runtime.serve.settings import API_KEY, ServerSettings


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
        server.service._health = time.monotonic() + 60, {"m": {"error": "a secret"}}
        assert server.ask("/v2/health/ready").error == "server: a model fails; GET /healthz with the API key tells why"
        assert server.ask("/v2/health/ready", X_API_Key=KEY).error == "m: a secret"
        server.service._health = None
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


def test_a_key_that_no_header_can_carry(monkeypatch):
    monkeypatch.setenv(API_KEY, "a key from a file\n")
    assert api_key() == "a key from a file"  # HTTP takes white space off the ends of a header, too
    for key in ("schlüssel", "two\nlines", "\udce4bcdefgh"):
        monkeypatch.setenv(API_KEY, key)
        with pytest.raises(ConfigError) as error:
            api_key()
        assert str(error.value) == f"{API_KEY}: has characters that no header carries, expected ASCII; choose another"


def test_two_workers_may_clear_up_after_a_dead_one_at_once(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"gauge_livesum_{ended.pid}.db").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path))

    def slower(path):
        Path(path).unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr("prometheus_client.multiprocess.os.remove", slower)
    assert ServerMetrics().text() == b""


@pytest.mark.parametrize("path", ["/", "/page/view.js", "/healthz", "/metrics", "/v1/models", "/v2/models/softmax"])
def test_head_is_get_without_the_body(server, path):
    reply = server.ask(path, method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-type"] == server.ask(path).headers["content-type"]
    assert server.ask("/v1/predict", method="HEAD").status == 405


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9000", "localhost.", "a.localhost:1", "127.0.0.1:1", "127.3.2.1", "[::1]:8000", ""]
)
def test_a_local_server_is_called_by_its_machines_own_names(server, host):
    assert server.ask("/v1/models", Host=host).status == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("evil.com", "evil.com"),
        ("Evil.com.:8000", "evil.com"),
        ("localhost.evil.com", "localhost.evil.com"),
        ("evillocalhost", "evillocalhost"),
        ("[::", ""),
        ("[::2]:80", "::2"),
        ("10.0.0.1", "10.0.0.1"),
        ("localhost@evil.com", "evil.com"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/nowhere"])
def test_a_local_server_that_is_called_by_another_name_does_not_answer(server, host, name, path):
    reply = server.ask(path, Host=host)
    assert (reply.status, reply.json["error"]) == (
        421,
        f"Host: {name}: is not a name of this server, expected localhost; or start it with --allow-host NAME",
    )


def test_names_are_allowed_or_do_not_matter_to_a_server_for_all():
    local = ServerSettings(models=(), allowed_hosts=("Masks.example.org",))
    assert local.allows_host("masks.EXAMPLE.org.:443") and local.allows_host("localhost")
    assert not local.allows_host("example.org")
    for host in ("localhost", "127.0.0.2", "::1", "::ffff:127.0.0.1"):
        assert not ServerSettings(models=(), host=host).allows_host("example.org")
    assert ServerSettings(models=(), host="0.0.0.0").allows_host("example.org")
    assert ServerSettings(models=(), host="10.0.0.1").allows_host("[::")
    published = ServerSettings(models=(), host="0.0.0.0", allowed_hosts=("localhost", "fe80::2"))
    assert published.allows_host("localhost:8000") and published.allows_host("[FE80::2]:80")
    assert not published.allows_host("example.org")


@pytest.mark.parametrize("name", ["masks.org:443", "[::2]", "https://masks.org", "a/b", "", "masks.org."])
def test_a_name_with_a_port_is_refused(name):
    with pytest.raises(ConfigError, match=r"--allow-host .*: expected a name or an address, without a port"):
        ServerSettings(models=(), allowed_hosts=(name,))


def test_a_head_request_is_logged_as_one(models, caplog):
    caplog.set_level(logging.INFO, "runtime.serve")
    with served({"m": models["brightness"]}) as server:
        assert server.ask("/v1/models", method="HEAD").status == 200
        wait_until(lambda: any(one.getMessage() == "request" for one in caplog.records))
    (line,) = (json.loads(JsonFormatter().format(one)) for one in caplog.records if one.getMessage() == "request")
    assert (line["method"], line["status"]) == ("HEAD", 200)


def test_other_methods_and_addresses_lead_nowhere(server):
    reply = server.ask("/v1/models", method="OPTIONS")
    assert (reply.status, reply.headers["allow"]) == (405, "GET")
    reply = server.ask("/v1/models/", Host="127.0.0.1:80")
    assert reply.status == 404
    assert "location" not in reply.headers


def test_the_openapi_document_tells_every_answer(server, picture):
    document = server.ask("/openapi.json").json
    infer = "/v2/models/{model}/infer"
    for path, template, body, status in (
        ("/healthz", "/healthz", None, 200),
        ("/metrics", "/metrics", None, 200),
        ("/v1/predict", "/v1/predict", picture, 200),
        ("/v1/predict", "/v1/predict", b"no image", 400),
        ("/v1/predict?format=geojson", "/v1/predict", picture, 200),
        ("/v2/models/softmax", "/v2/models/{model}", None, 200),
        ("/v2/models/car", "/v2/models/{model}", None, 404),
        ("/v2/models/softmax/infer", infer, b"{}", 400),
        ("/v2/health/live", "/v2/health/live", None, 200),
    ):
        reply = server.ask(path, body)
        assert reply.status == status
        (operation,) = document["paths"][template].values()
        declared = operation["responses"].get(str(status), operation["responses"]["default"])
        kind = reply.headers.get("content-type", "").partition(";")[0]
        kinds = declared.get("content", {"": None})
        assert kind in kinds or ("*/*" in kinds and "json" not in kind), path
    assert set(document["paths"][infer]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "application/octet-stream",
    }
    assert "422" not in json.dumps(document)  # the framework's own, which no request is answered with
