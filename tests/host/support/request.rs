//! A request of either CLI, as the scripted endpoint received it.

use std::collections::BTreeMap;

use serde_json::Value;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// Claude Code, the Messages API.
    Claude,
    /// Codex, the Responses API.
    Codex,
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
        let key = if self.api == Api::Claude { "messages" } else { "input" };
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
            })
            .filter(|block| {
                let kind = block["type"].as_str().unwrap_or_default();
                kind == "tool_result" || kind.ends_with("_call_output")
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
                lists.push(&tool["tools"]);
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
    message["role"] == "assistant" || kind == "reasoning" || kind.ends_with("_call")
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
            let inner = ["text", "content", "output"].iter().find_map(|key| block.get(*key));
            inner.map(text_of).unwrap_or_default()
        }
        _ => String::new(),
    }
}
