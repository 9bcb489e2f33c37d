//! The real Codex against the scripted endpoint.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::model::{Model, Part, Reply, Request};

/// Points every codex of this home at the endpoint, as a person would: by `~/.codex/config.toml`
/// and a login with a placeholder key, without environment variables.
pub(crate) fn configure(home: &Path, model: &Model) {
    let config = format!(
        r#"model_provider = "scripted"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.scripted]
name = "scripted"
base_url = "{}/v1"
wire_api = "responses"
requires_openai_auth = true
request_max_retries = 0
stream_max_retries = 0
"#,
        model.url()
    );
    let login = json!({ "auth_mode": "apikey", "OPENAI_API_KEY": "dummy-key" });
    let own = home.join(".codex");
    fs::create_dir_all(&own).expect("codex's home");
    fs::write(own.join("config.toml"), config).expect("codex's configuration");
    fs::write(own.join("auth.json"), login.to_string()).expect("codex's login");
}

/// The call that runs a shell command. Newer models have one tool, `exec`, which takes JavaScript;
/// others have `exec_command`. Both give a command 30 s at a time: the script keeps polling, while
/// `exec_command` answers with a session id for `write_stdin`.
pub(crate) fn shell(request: &Request, command: &str) -> Reply {
    if request.tools().contains(&"exec") {
        let command = json!({ "cmd": command, "yield_time_ms": 30_000 });
        return Reply::call(
            "exec",
            Value::String(format!(
                "// @exec: {{\"yield_time_ms\": 600000}}\n\
             let r = await tools.exec_command({command});\n\
             text(r.output);\n\
             while (r.session_id) {{\n\
               r = await tools.write_stdin({{ session_id: r.session_id, yield_time_ms: 30000 }});\n\
               text(r.output);\n\
             }}\n\
             text(`exit code ${{r.exit_code}}`);\n"
            )),
        );
    }
    Reply::call("exec_command", json!({ "cmd": command, "yield_time_ms": 30_000 }))
}

/// A response of the Responses API, whole and as stream events.
pub(crate) fn response(
    model: &str,
    parts: &[Part],
    id: &dyn Fn(&str) -> String,
) -> (Value, Vec<Value>) {
    let response = id("resp");
    let mut output = Vec::new();
    let mut events = vec![json!({
        "type": "response.created",
        "response": { "id": response, "object": "response", "status": "in_progress", "output": [] },
    })];
    for (index, part) in parts.iter().enumerate() {
        let item = match part {
            Part::Say(text) => json!({
                "type": "message", "id": id("msg"), "role": "assistant",
                "status": "completed",
                "content": [{ "type": "output_text", "text": text, "annotations": [] }],
            }),
            // A tool without a schema takes its input as plain text.
            Part::Call { name, input: Value::String(text) } => json!({
                "type": "custom_tool_call", "id": id("ctc"), "call_id": id("call"),
                "name": name, "input": text, "status": "completed",
            }),
            Part::Call { name, input } => json!({
                "type": "function_call", "id": id("fc"), "call_id": id("call"),
                "name": name, "arguments": input.to_string(), "status": "completed",
            }),
        };
        events.push(
            json!({ "type": "response.output_item.done", "output_index": index, "item": item }),
        );
        output.push(item);
    }
    let whole = json!({
        "id": response, "object": "response", "status": "completed", "model": model,
        "output": output,
        "usage": {
            "input_tokens": 10, "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": 10, "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": 20,
        },
    });
    events.push(json!({ "type": "response.completed", "response": whole }));
    (whole, events)
}
