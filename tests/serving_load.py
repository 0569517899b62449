"""Measures a running `vlm serve`: requests per second and latencies for several numbers of clients.

Usage: serving_load.py http://127.0.0.1:8000 IMAGE [QUESTION] [MAX_TOKENS]

Each client asks about the image, waits for the whole answer, and asks again on the same connection.
Only the standard library is used, and nothing but the given address is contacted.
"""

import base64
import http.client
import json
import sys
import threading
import time
import urllib.parse

CLIENTS = (1, 8, 32)
SECONDS = 12


def client(address: str, body: bytes, end: float, latencies: list[float], tokens: list[int]) -> None:
    connection = http.client.HTTPConnection(address, timeout=120)
    while time.monotonic() < end:
        begun = time.monotonic()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"status {response.status}: {answer}")
        latencies.append(time.monotonic() - begun)
        tokens.append(answer["usage"]["completion_tokens"])
    connection.close()


def main() -> None:
    url, path, *rest = sys.argv[1:]
    question = rest[0] if rest else "Describe the image."
    with open(path, "rb") as file:
        image = "data:;base64," + base64.b64encode(file.read()).decode()
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    request = {"messages": [{"role": "user", "content": content}]}
    if len(rest) > 1:
        request["max_tokens"] = int(rest[1])
    body = json.dumps(request).encode()
    address = urllib.parse.urlsplit(url).netloc
    client(address, body, time.monotonic() + 1, [], [])  # Warms up.
    print("clients  requests/s  tokens/s  p50 (ms)  p95 (ms)  requests")
    for count in CLIENTS:
        latencies, tokens = [], []
        begun = time.monotonic()
        arguments = (address, body, begun + SECONDS, latencies, tokens)
        threads = [threading.Thread(target=client, args=arguments) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.monotonic() - begun
        latencies.sort()
        p50, p95 = (1000 * latencies[int(len(latencies) * part)] for part in (0.5, 0.95))
        rate, token_rate = len(latencies) / elapsed, sum(tokens) / elapsed
        print(f"{count:7}  {rate:10.1f}  {token_rate:8.0f}  {p50:8.0f}  {p95:8.0f}  {len(latencies):8}")


main()
