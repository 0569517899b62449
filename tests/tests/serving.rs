//! `vlm serve`, over real connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::generation::trained;
use crate::support::{Trial, program, signal, vlm};

const PROMPT: &str = "Describe the image.";

/// A running server, which is killed when it is dropped.
struct Served {
    child: Child,
    address: SocketAddr,
    stderr: BufReader<ChildStderr>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response that was read to its end.
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// Checks status and code of an error, and that its message has `part`.
    fn assert_error(&self, status: u16, code: &str, part: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{part:?} in {error}");
    }
}

impl Served {
    fn start(model: &Path, flags: &[&str]) -> Self {
        let mut child = program()
            .args(["serve", "-v", "--port", "0", "--device", "cpu"])
            .arg(model)
            .args(flags)
            .env_remove("VLM_API_KEY")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().trim_end_matches('/');
        let address = address.parse().unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, address, stderr }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request without waiting for the response. In HTTP/1.0 its body ends with the
    /// connection.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        read_response(self.send(method, path, headers, body))
    }

    fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", "")
    }

    fn chat(&self, body: &Value) -> Response {
        self.request("POST", "/v1/chat/completions", "", &body.to_string())
    }

    /// A streamed answer of which the first event has arrived.
    fn stream(&self, body: &Value) -> BufReader<TcpStream> {
        let sent = self.send("POST", "/v1/chat/completions", "", &body.to_string());
        let mut reader = BufReader::new(sent);
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "no event");
        }
        reader
    }

    /// Waits until the server works on this number of requests.
    fn wait_for_requests(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.get("/health").json()["requests"] != count {
            assert!(Instant::now() < deadline, "not {count} requests within a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the server; returns its exit code and what it logged.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

fn read_response(mut stream: TcpStream) -> Response {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

/// The values of the events of a streamed answer; the last one is `[DONE]`.
fn events(body: &str) -> Vec<Value> {
    let data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"), "{body}");
    data[..data.len() - 1].iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::encode(bytes))
}

/// A question about image `k` of the trial.
fn question(k: usize) -> Value {
    let image = std::fs::read(trained().path(&format!("images/{k}.png"))).unwrap();
    json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": PROMPT},
        {"type": "image_url", "image_url": {"url": data_url(&image)}},
    ]}]})
}

/// `body` with further fields.
fn with(mut body: Value, fields: Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn content(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// A server with the overfitted model, for the tests that need no flags.
fn shared() -> &'static Served {
    static SHARED: OnceLock<Served> = OnceLock::new();
    let flags = ["--max-body-mib", "1", "--max-seq-len", "250"];
    SHARED.get_or_init(|| {
        let served = Served::start(&trained().path("out"), &flags);
        // A static is never dropped. This shell ends the server when its standard input is closed,
        // which is when the tests end.
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat > /dev/null; kill -9 \"$0\"", &served.child.id().to_string()]);
        std::mem::forget(shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        served
    })
}

/// A server with random weights, whose answers are as long as they may be.
fn talkative(flags: &[&str]) -> Served {
    static UNTRAINED: OnceLock<Trial> = OnceLock::new();
    let trial = UNTRAINED.get_or_init(|| {
        let trial = Trial::new();
        trial.pretrain(&["--learning-rate", "1e-30", "--max-steps", "1"]).assert_success();
        trial
    });
    let flags = [&["--max-new-tokens", "6000"], flags].concat();
    Served::start(&trial.path("out"), &flags)
}

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "Hello"}]})
}

#[test]
fn an_answer_has_text_usage_and_reason() {
    let server = shared();
    for k in [3, 5] {
        let response = server.chat(&with(question(k), json!({"model": "out"})));
        let expected = ["A green circle.", "A blue circle."][(k - 3) / 2];
        assert_eq!(content(&response), expected);
        let body = response.json();
        assert_eq!(body["object"], "chat.completion");
        assert_eq!(
            (&body["model"], &body["choices"][0]["finish_reason"]),
            (&json!("out"), &json!("stop"))
        );
        let count = |name: &str| body["usage"][name].as_u64().unwrap();
        assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
        assert!(count("prompt_tokens") > 196 && count("completion_tokens") > 2, "{body}");
    }
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "out");
    assert_eq!(server.get("/v1/models/out").json()["object"], "model");
    server.get("/v1/models/gpt").assert_error(404, "model_not_found", "gpt");
    let page = server.get("/");
    assert!(page.head.contains("text/html") && page.head.contains("default-src 'none'"));
    assert!(!page.body.contains("src=\"http") && !page.body.contains("href=\"http"));
}

#[test]
fn the_pieces_of_a_stream_are_the_answer() {
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let response = shared().chat(&with(question(0), fields));
    assert!(response.head.contains("text/event-stream"), "{}", response.head);
    let events = events(&response.body);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let delta = |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    let pieces: Vec<String> = events.iter().filter_map(delta).collect();
    assert_eq!(pieces.concat(), "A red circle.");
    assert!(pieces.len() > 2, "{pieces:?}");
    let [.., finish, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["total_tokens"].as_u64().unwrap() > 196, "{usage}");
    assert!(finish["usage"].is_null(), "{finish}");
}

#[test]
fn an_answer_ends_at_a_stop_text_or_at_its_largest_length() {
    let reason = |response: &Response| response.json()["choices"][0]["finish_reason"].clone();
    let stopped = shared().chat(&with(question(0), json!({"stop": ["circle", "dog"]})));
    assert_eq!((content(&stopped), reason(&stopped)), ("A red".into(), json!("stop")));
    let cut = shared().chat(&with(question(0), json!({"max_completion_tokens": 2})));
    assert_eq!(reason(&cut), "length");
    assert_eq!(cut.json()["usage"]["completion_tokens"], 2);
    let drawn = |seed: u64| {
        let fields = json!({"temperature": 8, "seed": seed, "max_tokens": 12});
        content(&shared().chat(&with(question(1), fields)))
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn a_wrong_request_gets_an_error_that_names_the_part() {
    let server = shared();
    let image = |url: &str| {
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}},
        ]}]})
    };
    let bad = server.chat(&image(&data_url(b"no image")));
    bad.assert_error(400, "invalid_value", "messages[1].content[1]: unreadable-image");
    assert_eq!(bad.json()["error"]["type"], "invalid_request_error");
    server.chat(&image("https://example.org/a.png")).assert_error(
        400,
        "invalid_value",
        "messages[1].content[1].image_url.url: this server does not load images from https",
    );
    server.chat(&with(hello(), json!({"n": 2}))).assert_error(400, "unsupported_parameter", "n:");
    server.chat(&with(hello(), json!({"model": "x"}))).assert_error(404, "model_not_found", "out");
    let long = json!({"messages": [{"role": "user", "content": "red ".repeat(300)}]});
    server.chat(&long).assert_error(400, "context_length_exceeded", "tokens");
    let text = server.request("POST", "/v1/chat/completions", "", "no JSON");
    text.assert_error(400, "invalid_value", "body: expected a JSON object");
    let large = image(&data_url(&vec![0; 2 << 20]));
    server.chat(&large).assert_error(413, "request_too_large", "1048576");
    server.get("/v1/chat/completions").assert_error(405, "method_not_allowed", "GET");
    server.get("/v1/embeddings").assert_error(404, "not_found", "/v1/embeddings");

    let mut stream = server.connect();
    write!(stream, "POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
    read_response(stream).assert_error(415, "unsupported_media_type", "application/json");
    // The length is not announced, and the server finds it out.
    let mut stream = server.connect();
    let json = "Content-Type: application/json\r\nConnection: close\r\n";
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{json}Transfer-Encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for _ in 0..3 {
        write!(stream, "80000\r\n{}\r\n", " ".repeat(0x80000)).unwrap();
    }
    write!(stream, "0\r\n\r\n").unwrap();
    let response = read_response(stream);
    assert_eq!(response.status, 413, "{}", response.body);
}

#[test]
fn a_key_is_needed_for_the_model_but_not_for_the_page() {
    let server =
        Served::start(&trained().path("out"), &["--api-key", "s3cret", "--model-name", "m"]);
    let chat = |headers: &str| {
        server.request("POST", "/v1/chat/completions", headers, &hello().to_string())
    };
    chat("").assert_error(401, "invalid_api_key", "Authorization: Bearer");
    for wrong in ["s3cre", "s3cret2", ""] {
        let response = chat(&format!("Authorization: Bearer {wrong}\r\n"));
        assert_eq!(response.status, 401, "{wrong}");
    }
    server.get("/v1/models").assert_error(401, "invalid_api_key", "key");
    let answered = chat("authorization: bearer s3cret\r\n");
    assert_eq!((answered.status, &answered.json()["model"]), (200, &json!("m")));
    assert_eq!((server.get("/").status, server.get("/health").status), (200, 200));
}

#[test]
fn a_full_queue_refuses_and_a_client_that_sends_nothing_is_disconnected() {
    let flags = ["--max-batch", "1", "--max-queue", "0", "--read-timeout-secs", "1"];
    let server = Served::start(&trained().path("out"), &flags);
    // This request takes the only place, and its body never comes.
    let mut slow = server.connect();
    let head = "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n";
    write!(slow, "{head}Content-Length: 10\r\n\r\n").unwrap();
    let mut silent = server.connect();
    server.wait_for_requests(1);
    let refused = server.chat(&question(0));
    refused.assert_error(429, "rate_limit_exceeded", "1 request");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);
    read_response(slow).assert_error(408, "request_timeout", "1 s");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "a connection without a request is closed");
    assert_eq!(content(&server.chat(&question(3))), "A green circle.");
}

#[test]
fn a_request_joins_the_running_batch_and_a_client_that_leaves_frees_its_row() {
    let server =
        talkative(&["--max-batch", "2", "--max-queue", "0", "--request-timeout-secs", "90"]);
    let short = with(hello(), json!({"max_tokens": 8}));
    let alone = content(&server.chat(&short));
    let long = server.stream(&with(hello(), json!({"stream": true})));
    // The long answer takes seconds.
    assert_eq!(content(&server.chat(&short)), alone);
    assert_eq!(server.get("/health").json()["requests"], 1);
    drop(long);
    server.wait_for_requests(0);
    signal(&server.child, "TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("a client left"), "{log}");
}

#[test]
fn running_answers_are_completed_before_the_server_ends() {
    let server = talkative(&[]);
    let mut running = server.stream(&with(hello(), json!({"stream": true, "max_tokens": 300})));
    // A connection that is kept open must not delay the end.
    let idle = server.connect();
    signal(&server.child, "INT");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    let last = events(&rest).pop().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopping when the running answers are complete"), "{log}");
    drop(idle);
}

#[test]
fn an_answer_that_takes_longer_than_the_grace_time_ends_with_an_error() {
    let server = talkative(&["--grace-secs", "0"]);
    let mut running = server.stream(&with(hello(), json!({"stream": true})));
    signal(&server.child, "TERM");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    let last = rest.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    assert!(last.contains("server_stopping"), "{last}");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn what_cannot_be_served_is_a_usage_error() {
    let taken = shared().address.port().to_string();
    let model = trained().path("out");
    let model = model.to_str().unwrap();
    vlm(&["serve", model, "--port", &taken]).assert_error(2, &["--host", "--port", &taken]);
    vlm(&["serve", model, "--port", "0", "--api-key", ""]).assert_error(2, &["--api-key"]);
    vlm(&["serve", "none", "--port", "0"]).assert_error(2, &["none"]);
    vlm(&["serve", model, "--model", model]).assert_error(2, &["--model"]);
}

#[test]
#[ignore = "needs a Python with openai (VLM_OPENAI_PYTHON)"]
fn openai_client_gets_the_same_answers() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let python = std::env::var_os("VLM_OPENAI_PYTHON").unwrap_or_else(|| "python3".into());
    let flags = ["--api-key", "s3cret", "--max-batch", "1", "--max-queue", "1"];
    let server = Served::start(&trained().path("out"), &flags);
    let output = Command::new(python)
        .arg(script)
        .arg(format!("http://{}/v1", server.address))
        .arg(trained().path("images/3.png"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "A green circle.");
}
