"""Asks a running server with OpenAI's client, and prints the answer.

Usage: openai_client.py BASE_URL IMAGE. The key of the server is s3cret.
"""

import base64
import sys

import openai


def main() -> None:
    base_url, path = sys.argv[1:]
    with open(path, "rb") as file:
        url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
    client = openai.OpenAI(base_url=base_url, api_key="s3cret", max_retries=0)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    image = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
    text = {"type": "text", "text": "Describe the image."}
    messages = [{"role": "user", "content": [text, image]}]

    whole = client.chat.completions.create(model=model, messages=messages, temperature=0)
    choice = whole.choices[0]
    assert choice.finish_reason == "stop", whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert "detail" in whole.warnings[0], whole

    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [part.delta.content or "" for chunk in chunks for part in chunk.choices]
    assert "".join(pieces) == choice.message.content, pieces
    assert chunks[-1].usage == whole.usage, chunks[-1]

    # The answer of the assistant is given back as the client represents it.
    messages += [choice.message, {"role": "user", "content": "Describe the image."}]
    short = client.chat.completions.create(
        model=model, messages=messages, max_tokens=3, stop=["nothing"], seed=1, top_p=0.9
    )
    assert short.usage.completion_tokens <= 3, short

    expect(openai.BadRequestError, "n", client, model=model, messages=messages, n=2)
    expect(openai.NotFoundError, None, client, model="gpt", messages=messages)
    bad = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    part = "messages[0].content[0].image_url.url"
    expect(openai.BadRequestError, part, client, model=model, messages=bad)
    stranger = client.with_options(api_key="wrong")
    expect(openai.AuthenticationError, None, stranger, model=model, messages=messages)
    print(choice.message.content)


def expect(kind: type, param: str | None, client: openai.OpenAI, **request) -> None:
    """Checks that a request fails with an error of this kind about `param`."""
    try:
        client.chat.completions.create(**request)
    except kind as error:
        assert error.param == param, error
    else:
        raise AssertionError(f"expected {kind.__name__}")


main()
