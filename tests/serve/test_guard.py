"""Who may ask: hosts, origins, tokens, rates; and what every answer carries. Each is a promise of SECURITY.md."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from perceiver_vl import UsageError
from perceiver_vl.serve.settings import ServeSettings, find_token
from small_service import opened, problem, service_of

TOKEN = "a-token-of-some-length"
LIVE = "/health/live"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.1.5:8000", ""]
)
def test_a_name_that_is_not_ours_is_refused(host: str, api: TestClient) -> None:
    """As when a page elsewhere has its own name lead here (DNS rebinding)."""
    assert "not a name of this service" in problem(api.get(LIVE, headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1:1"])
def test_this_machine_s_own_names_are_ours(host: str, api: TestClient) -> None:
    assert api.get(LIVE, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8000", "http://127.0.0.1:9000"])
def test_a_page_elsewhere_may_not_ask(origin: str, api: TestClient) -> None:
    answer = api.post("/v1/search", json={"query": "a"}, headers={"Origin": origin})
    assert "may not use this service" in problem(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    problem(api.options("/v1/search", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}), 403)


def test_a_page_elsewhere_may_not_even_show_a_picture(api: TestClient) -> None:
    there = {"Sec-Fetch-Site": "cross-site"}
    problem(api.get("/v1/index", headers={**there, "Sec-Fetch-Mode": "no-cors"}), 403)
    assert api.get("/", headers={**there, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link may lead here
    assert api.get("/v1/index", headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200


def test_without_the_token_nothing_is_told(served: tuple[Path, Path]) -> None:
    with service_of(served[0], token=TOKEN) as client:
        wrong: list[dict[str, str]] = [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Cookie": "perceiver_vl_token=wrong"},
        ]
        for headers in wrong:
            for path in ("/v1/index", "/metrics", "/openapi.json", "/", "/static/page.js", f"/v1/index?token={TOKEN}"):
                answer = client.get(path, headers=headers)
                assert "token" in problem(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        opened(client)  # health is for whoever starts it anew
        assert client.get("/v1/index", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_keeps_the_token_in_no_address(served: tuple[Path, Path]) -> None:
    with service_of(served[0], token=TOKEN) as client:
        opened(client)
        asked = client.get("/", headers={"Accept": "text/html"})
        assert asked.status_code == 401
        assert 'name="token"' in asked.text
        assert client.post("/token", data={"token": "wrong"}).status_code == 401
        answer = client.get("/", params={"token": TOKEN, "q": "a b"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/?q=a+b")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get("/v1/index").status_code == 200  # the client has it now
    with service_of(served[0], token=TOKEN) as client:
        opened(client)
        typed = client.post("/token", data={"token": TOKEN}, follow_redirects=False)
        assert typed.status_code == 303
        assert client.get("/v1/index").status_code == 200


def test_behind_a_proxy_cookies_are_for_https_and_names_are_given(served: tuple[Path, Path]) -> None:
    with service_of(served[0], token=TOKEN, behind_proxy=True, names=("videos.example",)) as client:
        there = {"Host": "videos.example", "Authorization": f"Bearer {TOKEN}"}
        answer = client.get("/", params={"token": TOKEN}, headers={"Host": "videos.example"}, follow_redirects=False)
        assert "Secure" in answer.headers["set-cookie"]
        assert client.get("/metrics", headers={**there, "Origin": "https://videos.example"}).status_code == 200
        problem(client.get("/metrics", headers={**there, "Origin": "http://videos.example"}), 403)
        problem(client.get("/metrics", headers={**there, "Host": "other.example"}), 421)
        assert client.get("/metrics", headers={**there, "Host": "10.0.0.3:8000"}).status_code == 200  # as a probe asks


def test_a_client_that_asks_too_much_waits(served: tuple[Path, Path]) -> None:
    with service_of(served[0], rate=0.5, burst=5.0) as client:
        answers = [client.get(LIVE) for _ in range(8)]
        assert [one.status_code for one in answers[:5]] == [200] * 5
        assert "too many requests" in problem(answers[-1], 429)
        assert answers[-1].headers["retry-after"] == "1"


def test_every_answer_keeps_a_page_to_itself(api: TestClient) -> None:
    for path in ("/", "/api", "/v1/index", "/nothing", "/static/page.js"):
        headers = api.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


Settings = dict[str, Any]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "needs a token"),
        ({"host": "0.0.0.0", "token": TOKEN}, "--tls-certificate and --tls-key"),
        ({"host": "192.168.1.5", "token": TOKEN}, "--behind-proxy"),
        ({"behind_proxy": True}, "needs a token"),
        ({"token": "short"}, "at least 16"),
        ({"certificate": Path("a.pem")}, "needs both files"),
        ({"certificate": Path("a.pem"), "key": Path("b.pem")}, "a.pem: no such file"),
    ],
)
def test_what_is_not_safe_is_not_started(settings: Settings, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ServeSettings(("index",), **settings).check()


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERCEIVER_VL_TOKEN", raising=False)
    assert find_token("127.0.0.1", None) == (None, False)
    first, is_new = find_token("0.0.0.0", None)
    assert is_new
    assert first != find_token("0.0.0.0", None)[0]
    assert first is not None
    assert len(first) >= 32
    assert find_token("127.0.0.1", None, behind_proxy=True)[1]
    monkeypatch.setenv("PERCEIVER_VL_TOKEN", TOKEN)
    assert find_token("127.0.0.1", None) == (TOKEN, False)
    (tmp_path / "token").write_text("another-token-of-some-length\n")
    assert find_token("0.0.0.0", tmp_path / "token") == ("another-token-of-some-length", False)
    with pytest.raises(UsageError, match="cannot be read"):
        find_token("0.0.0.0", tmp_path / "nothing")
