//! A scripted model endpoint on loopback, for the real CLIs: the Messages API for Claude Code and most
//! others, the Responses API for Codex, and Gemini's. The script is a closure from a request to a reply.
//!
//! Longer than 500 lines because each protocol is read and written here.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

use super::{claude, codex};

/// A part of a reply.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// Text to the person.
    Say(String),
    /// A tool call.
    Call {
        /// The tool's name.
        name: String,
        /// The tool's input.
        input: Value,
    },
}

/// The reply of the model.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A message. Several tool calls in it run in parallel, as the CLI likes.
    Message(Vec<Part>),
    /// An HTTP error.
    Error {
        /// The HTTP status.
        status: u16,
        /// More headers, by name.
        headers: Vec<(&'static str, String)>,
        /// The API's error object.
        error: Value,
    },
    /// The connection is closed without an answer.
    Drop,
}

impl Reply {
    /// Text, and the end of the turn.
    pub(crate) fn say(text: impl Into<String>) -> Self {
        Self::Message(vec![Part::Say(text.into())])
    }

    /// A tool call.
    pub(crate) fn call(name: &str, input: Value) -> Self {
        Self::Message(vec![Part::Call { name: name.into(), input }])
    }

    /// The tool call that runs a shell command in the CLI that asks.
    pub(crate) fn shell(request: &Request, command: &str) -> Self {
        if request.api == Api::Codex {
            return codex::shell(request, command);
        }
        let tools = request.tools();
        // Gemini's and Qwen's, opencode's and Copilot's, Droid's.
        let others = ["run_shell_command", "bash", "Execute"];
        let name = others.into_iter().find(|name| tools.contains(name)).unwrap_or("Bash");
        let mut input = json!({ "command": command, "description": "Run" });
        match name {
            "run_shell_command" => input["is_background"] = false.into(),
            "Execute" => {
                let risk =
                    json!({ "summary": "Run", "riskLevel": "low", "riskLevelReason": "None" });
                input = json!({ "command": command, "timeout": 120 });
                input.as_object_mut().expect("one").extend(risk.as_object().expect("one").clone());
            }
            _ => {}
        }
        Self::call(name, input)
    }

    /// The tool call that reads a file in the CLI that asks; a shell's where it has no other.
    #[cfg(target_os = "linux")]
    pub(crate) fn read(request: &Request, path: &std::path::Path) -> Self {
        let readers = [
            ("Read", "file_path"),
            ("read_file", "file_path"),
            ("read", "filePath"),
            ("view", "path"),
        ];
        let tools = request.tools();
        match readers.into_iter().find(|(name, _)| tools.contains(name)) {
            Some((name, key)) => Self::call(name, json!({ key: path })),
            None => Self::shell(request, &format!("cat '{}'", path.display())),
        }
    }

    /// This reply's parts, then those of `next`, in one message.
    pub(crate) fn and(self, next: Self) -> Self {
        match (self, next) {
            (Self::Message(first), Self::Message(next)) => Self::Message([first, next].concat()),
            _ => panic!("only messages can be joined"),
        }
    }

    /// An HTTP error; `kind` and `message` are the API's.
    pub(crate) fn error(status: u16, kind: &str, message: &str) -> Self {
        let error = json!({ "type": kind, "message": message });
        Self::Error { status, headers: Vec::new(), error }
    }
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct State {
    requests: Vec<Arc<Request>>,
    streams: BTreeMap<usize, TcpStream>,
    ended: bool,
}

struct Shared {
    script: Box<Script>,
    state: Mutex<State>,
    number: AtomicUsize,
}

/// The endpoint; it ends when dropped.
pub(crate) struct Model {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Model {
    /// Starts an endpoint that answers with `script`. Side requests (titles, probes) are answered
    /// with harmless text, and the script does not see them.
    pub(crate) fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            state: Mutex::default(),
            number: AtomicUsize::new(1),
        });
        let of_acceptor = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &of_acceptor));
        Self { shared, address, acceptor: Some(acceptor) }
    }

    /// The endpoint's base address, without a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every model request so far, side requests too.
    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.shared.lock().requests.clone()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let streams = {
            let mut state = self.shared.lock();
            state.ended = true;
            std::mem::take(&mut state.streams)
        };
        for stream in streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor, which then sees the end.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking test leaves the requests intact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, kind: &str) -> String {
        format!("{kind}_{:04}", self.number.fetch_add(1, Ordering::Relaxed))
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut servers: Vec<JoinHandle<()>> = Vec::new();
    for (number, stream) in listener.incoming().enumerate() {
        let Ok(stream) = stream else { break };
        {
            let mut state = shared.lock();
            if state.ended {
                break;
            }
            if let Ok(handle) = stream.try_clone() {
                state.streams.insert(number, handle);
            }
        }
        let of_server = Arc::clone(shared);
        servers.push(thread::spawn(move || {
            // A CLI may disconnect at any time: an error ends only its connection.
            let _ = serve(&stream, &of_server);
            let _ = stream.shutdown(Shutdown::Both);
            of_server.lock().streams.remove(&number);
        }));
    }
    for server in servers {
        let _ = server.join();
    }
}

/// An HTTP request.
pub(crate) struct Http {
    /// The method.
    pub(crate) method: String,
    /// The path with the query.
    pub(crate) path: String,
    /// The headers, with lower-case names.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Reads a request; `None` if the client has disconnected.
pub(crate) fn read(stream: &TcpStream) -> std::io::Result<Option<Http>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = headers.get("content-length").and_then(|text| text.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    }
    Ok(Some(Http { method, path, headers, body }))
}

fn respond(stream: &TcpStream, status: u16, kind: &str, body: &str) -> std::io::Result<()> {
    respond_with(stream, status, &[("content-type", kind.to_owned())], body)
}

fn respond_with(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &str,
) -> std::io::Result<()> {
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "HTTP/1.1 {status} .\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    stream.flush()
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let Some(http) = read(stream)? else { return Ok(()) };
    let json = "application/json";
    let route = http.path.split('?').next().unwrap_or_default();
    let api = match (http.method.as_str(), route) {
        ("POST", "/v1/messages") => Api::Claude,
        ("POST", "/v1/responses") => Api::Codex,
        ("POST", route) if route.ends_with("enerateContent") => Api::Gemini,
        (method, route) => {
            return match (method, route) {
                ("POST", "/v1/messages/count_tokens") => {
                    respond(stream, 200, json, &json!({ "input_tokens": 1000 }).to_string())
                }
                ("HEAD", "/") => respond(stream, 200, json, ""),
                ("GET", "/v1/models") => respond(
                    stream,
                    200,
                    json,
                    &json!({ "object": "list", "data": [], "models": [] }).to_string(),
                ),
                _ => respond(stream, 404, json, &json!({ "error": "not here" }).to_string()),
            };
        }
    };
    let Ok(body) = serde_json::from_slice::<Value>(&http.body) else {
        return respond(stream, 400, json, &json!({ "error": "not JSON" }).to_string());
    };
    let request = Arc::new(Request {
        api,
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        body,
        headers: http.headers,
    });
    shared.lock().requests.push(Arc::clone(&request));
    // The panic message is on the test's stderr, and the CLI reports the error to its user.
    let script = AssertUnwindSafe(|| (shared.script)(&request));
    let reply = if request.is_side_request() {
        Ok(Reply::say("{\"title\": \"A test\"}"))
    } else {
        catch_unwind(script)
    };
    let parts = match reply {
        Ok(Reply::Message(parts)) => parts,
        Ok(Reply::Error { status, mut headers, error }) => {
            headers.push(("content-type", json.to_owned()));
            let body = json!({ "type": "error", "error": error });
            return respond_with(stream, status, &headers, &body.to_string());
        }
        Ok(Reply::Drop) => return Ok(()),
        Err(_) => {
            let error = json!({ "type": "error", "error": { "message": "the script failed" } });
            return respond(stream, 400, json, &error.to_string());
        }
    };
    let (whole, events) = match api {
        Api::Gemini => {
            let whole = gemini(&parts);
            return if route.ends_with("streamGenerateContent") {
                respond(stream, 200, "text/event-stream", &format!("data: {whole}\n\n"))
            } else {
                respond(stream, 200, json, &whole.to_string())
            };
        }
        Api::Claude => claude::message(&request.model, &parts, &|kind| shared.id(kind)),
        Api::Codex => codex::response(&request.model, &parts, &|kind| shared.id(kind)),
    };
    if !request.body["stream"].as_bool().unwrap_or(false) {
        return respond(stream, 200, json, &whole.to_string());
    }
    let text: String = events
        .iter()
        .map(|event| {
            let kind = event["type"].as_str().unwrap_or_default();
            format!("event: {kind}\ndata: {event}\n\n")
        })
        .collect();
    respond(stream, 200, "text/event-stream", &text)
}

/// A response of Gemini's API.
fn gemini(parts: &[Part]) -> Value {
    let parts: Vec<_> = parts
        .iter()
        .map(|part| match part {
            Part::Say(text) => json!({ "text": text }),
            Part::Call { name, input } => {
                json!({ "functionCall": { "name": name, "args": input } })
            }
        })
        .collect();
    json!({
        "candidates": [{
            "content": { "role": "model", "parts": parts }, "finishReason": "STOP", "index": 0,
        }],
        "usageMetadata": {
            "promptTokenCount": 10, "candidatesTokenCount": 10, "totalTokenCount": 20,
        },
    })
}

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// Claude Code and most others, the Messages API.
    Claude,
    /// Codex, the Responses API.
    Codex,
    /// Gemini CLI.
    Gemini,
}

/// A request as the endpoint received it.
#[derive(Debug)]
pub(crate) struct Request {
    /// The protocol.
    pub(crate) api: Api,
    /// The requested model.
    pub(crate) model: String,
    /// The whole body.
    pub(crate) body: Value,
    /// The headers, with lower-case names.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    /// The conversation as the API carries it: messages of Claude, items of Codex.
    pub(crate) fn messages(&self) -> &[Value] {
        let key = match self.api {
            Api::Claude => "messages",
            Api::Codex => "input",
            Api::Gemini => "contents",
        };
        self.body[key].as_array().map_or(&[], Vec::as_slice)
    }

    /// Every text of the conversation in order: the person's, the model's, reminders, results.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.messages().iter().map(text_of).filter(|text| !text.is_empty()).collect()
    }

    /// The texts that are new to the model: the user's texts after its last message, with results,
    /// reminders and notifications. Claude Code puts a notification that arrives during a turn into
    /// a message of the role `system`; other content of such messages (tools, agents, the
    /// environment) is omitted here, and is in `texts`.
    pub(crate) fn last_user(&self) -> String {
        let messages = self.messages();
        let start = messages.iter().rposition(is_models).map_or(0, |last| last + 1);
        let texts = messages[start..].iter().map(|message| (&message["role"], text_of(message)));
        let texts: Vec<String> = texts
            .filter(|(role, text)| match role.as_str() {
                Some("system" | "developer") => text.contains("[SYSTEM NOTIFICATION"),
                _ => true,
            })
            .map(|(_, text)| text)
            .collect();
        texts.join("\n")
    }

    /// The user's text before the model's first message; for an Agent, its prompt.
    pub(crate) fn first_user(&self) -> String {
        let first = self.messages().iter().take_while(|message| !is_models(message));
        let texts: Vec<String> =
            first.filter(|message| message["role"] == "user").map(text_of).collect();
        texts.join("\n")
    }

    /// The results of the tool calls of the model's last message.
    pub(crate) fn last_tool_results(&self) -> Vec<String> {
        let messages = self.messages();
        let start = messages.iter().rposition(is_models).map_or(0, |last| last + 1);
        messages[start..]
            .iter()
            .flat_map(|message| match self.api {
                Api::Claude => message["content"].as_array().map_or(&[][..], Vec::as_slice),
                Api::Codex => std::slice::from_ref(message),
                Api::Gemini => message["parts"].as_array().map_or(&[][..], Vec::as_slice),
            })
            .filter(|block| {
                let kind = block["type"].as_str().unwrap_or_default();
                kind == "tool_result"
                    || kind.ends_with("_call_output")
                    || block["functionResponse"].is_object()
            })
            .map(text_of)
            .collect()
    }

    /// The tool calls of Claude's model in this conversation, each its tool's name and its input.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        let messages = self.messages().iter().filter(|message| is_models(message));
        let blocks = messages.filter_map(|message| message["content"].as_array()).flatten();
        blocks
            .filter(|block| block["type"] == "tool_use")
            .map(|block| {
                let name = block["name"].as_str().unwrap_or_default();
                (name.to_owned(), block["input"].clone())
            })
            .collect()
    }

    /// The number of the model's messages in this conversation.
    pub(crate) fn turns(&self) -> usize {
        let messages = self.messages();
        (0..messages.len())
            .filter(|&at| is_models(&messages[at]) && (at == 0 || !is_models(&messages[at - 1])))
            .count()
    }

    /// The names of the tools on offer. (Codex offers its newer models' tools in the conversation,
    /// grouped, and not in `tools`.)
    pub(crate) fn tools(&self) -> Vec<&str> {
        let mut names = Vec::new();
        let mut lists = vec![&self.body["tools"]];
        lists.extend(self.messages().iter().map(|message| &message["tools"]));
        while let Some(list) = lists.pop() {
            for tool in list.as_array().map_or(&[][..], Vec::as_slice) {
                names.extend(tool["name"].as_str());
                lists.extend([&tool["tools"], &tool["functionDeclarations"]]);
            }
        }
        names
    }

    /// `true` for a request without tools: a title or a probe, and no conversation.
    pub(crate) fn is_side_request(&self) -> bool {
        self.tools().is_empty()
    }

    /// The id of the requesting Agent; `None` for the host's own conversation and for Codex.
    pub(crate) fn agent(&self) -> Option<&str> {
        self.headers.get("x-claude-code-agent-id").map(String::as_str)
    }

    /// `true` if an Agent sends the request.
    pub(crate) fn is_agent(&self) -> bool {
        self.agent().is_some()
    }
}

/// `true` for a message or item of the model.
fn is_models(message: &Value) -> bool {
    let kind = message["type"].as_str().unwrap_or_default();
    let role = message["role"].as_str().unwrap_or_default();
    matches!(role, "assistant" | "model") || kind == "reasoning" || kind.ends_with("_call")
}

/// The text in a string, a block, a message, a tool's result, or a list of them.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<String> = parts.iter().map(text_of).collect();
            let full: Vec<&str> =
                texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
            full.join("\n")
        }
        Value::Object(block) => {
            let keys =
                ["text", "content", "output", "parts", "functionResponse", "response", "error"];
            let inner = keys.iter().find_map(|key| block.get(*key));
            inner.map(text_of).unwrap_or_default()
        }
        _ => String::new(),
    }
}
