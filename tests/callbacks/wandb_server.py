"""A W&B server on this machine that knows just enough for a run."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

ME = {"id": "1", "username": "me", "entity": "me", "name": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "2", "name": "triptych", "entity": {"id": "3", "name": "me"}}


class WandbServer(ThreadingHTTPServer):
    """Attributes: `runs` by id, each with `rows` (dictionaries) and `config`.

    Args:
        falls_silent: answer until a run has started, then only take connections.
    """

    daemon_threads = True

    def __init__(self, falls_silent: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs = {}
        self.falls_silent = falls_silent
        self.awake = threading.Event()
        self.awake.set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def handle_error(self, *_) -> None:
        """Connections that W&B gives up are none of a test's business."""

    def __exit__(self, *_) -> None:
        self.awake.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            self._answer({"data": self._graphql(json.loads(body))})
        elif self.path.endswith("/file_stream"):
            if self.server.falls_silent:
                self.server.awake.clear()
            rows = (json.loads(body).get("files") or {}).get("wandb-history.jsonl")
            if rows:
                run = self.server.runs[self.path.split("/")[-2]]
                run.rows[rows["offset"] :] = [json.loads(row) for row in rows["content"]]
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})

    def _graphql(self, request: dict) -> dict:
        variables = request.get("variables") or {}
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"]).group(1)
        if name == "RunResumeStatus":
            run = self.server.runs.get(variables["name"])
            return {"model": {**PROJECT, "bucket": run and self._bucket(variables["name"], run)}}
        if name == "UpsertBucket":
            new = variables["name"] not in self.server.runs
            run = self.server.runs.setdefault(variables["name"], SimpleNamespace(rows=[], config={}))
            run.config.update(json.loads(variables.get("config") or "{}"))
            return {"upsertBucket": {"bucket": self._bucket(variables["name"], run), "inserted": new}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "4", "uploadHeaders": [], "files": files}}
        return {"viewer": ME, "serverInfo": {"features": []}}

    def _bucket(self, identity: str, run: SimpleNamespace) -> dict:
        return {
            "id": identity,
            "name": identity,
            "displayName": identity,
            "description": None,
            "config": json.dumps(run.config),
            "project": PROJECT,
            "sweepName": None,
            "historyLineCount": len(run.rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.rows[-1] if run.rows else {}),
            "wandbConfig": json.dumps({"t": 1}),
            "tags": [],
        }

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict) -> None:
        if not self.server.awake.is_set():
            self.server.awake.wait()
            self.close_connection = True  # who asked has gone
            return
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
