use super::*;
use crate::text::sanitize;

fn listed(rows: &[(&str, Option<&str>)]) -> Vec<Listed> {
    let model = |&(id, name): &(&str, Option<&str>)| Listed {
        id: id.into(),
        name: name.map(str::to_owned),
    };
    rows.iter().map(model).collect()
}

#[test]
fn every_row_says_when_it_was_checked_and_shares_no_program() {
    let mut programs: Vec<_> = CLIS.iter().flat_map(|cli| cli.programs).collect();
    programs.sort();
    programs.dedup();
    assert_eq!(programs.len(), CLIS.iter().map(|cli| cli.programs.len()).sum::<usize>());
    for cli in &CLIS {
        let (date, how) = checked(cli.backend).and_then(|c| c.split_once(", ")).expect("a date");
        assert!(date.len() == 10 && date.starts_with("20") && !how.is_empty(), "{}", cli.backend);
    }
    assert_eq!(checked("harvey"), None);
}

#[test]
fn the_version_in_what_a_cli_says() {
    let rows = [
        ("2.1.329 (Claude Code)\n", Some("2.1.329")),
        ("codex-cli 0.169.0\n", Some("0.169.0")),
        ("codex-cli 0.147.0-alpha.3\n", Some("0.147.0-alpha.3")),
        ("2026.01.28-fd13201\n", Some("2026.01.28-fd13201")),
        (
            "GitHub Copilot CLI 1.0.102.\nRun 'copilot update' to check for updates.\n",
            Some("1.0.102"),
        ),
        (
            "0.0.1790142911-g7618fb (released 2026-09-23T05:55:11.000Z, 1mo ago)\n",
            Some("0.0.1790142911-g7618fb"),
        ),
        ("v0.61.0", Some("0.61.0")),
        ("unknown option --version", None),
        ("", None),
    ];
    for (text, version) in rows {
        assert_eq!(version_in(text).as_deref(), version, "{text}");
    }
}

#[test]
fn a_program_of_the_same_name_is_told_by_what_it_says() {
    let rows = [
        ("cursor", "agent", "2026.01.28-fd13201\n", true),
        ("cursor", "agent", "0.3\n", false),
        ("cursor", "agent", "0.2026.1\n", false),
        ("cursor", "agent", "20260128\n", false),
        ("cursor", "cursor-agent", "1.0.0\n", true),
        ("copilot", "copilot", "GitHub Copilot CLI 1.0.102.\n", true),
        ("copilot", "copilot", "copilot version: v1.34.0\n", false),
        ("amp", "amp", "0.0.1790142911-g7618fb\n", true),
        ("amp", "amp", "amp 0.7.0\n", false),
    ];
    for (backend, program, text, own) in rows {
        let cli = CLIS.iter().find(|cli| cli.backend == backend).expect("a row");
        assert_eq!((cli.is_own)(program, text), own, "{program}: {text}");
    }
}

#[test]
fn a_flag_is_gone_since_its_version() {
    let gone = [("--full-auto", "-s workspace-write")].as_slice();
    let rows = [
        ("codex", Some("0.120.0"), [].as_slice()),
        ("codex", Some("0.146.0"), &[]),
        ("codex", Some("0.146.1-alpha.2"), &[]),
        ("codex", Some("0.147.0"), gone),
        ("codex", Some("0.169.0"), gone),
        ("codex", Some("1.0"), gone),
        ("codex", None, gone),
        ("claude", None, &[]),
        ("harvey", None, &[]),
    ];
    for (backend, version, flags) in rows {
        assert_eq!(removed_flags(backend, version), flags, "{backend} {version:?}");
    }
}

#[test]
fn the_answer_about_a_login() {
    let of = |backend: &str| &CLIS.iter().find(|cli| cli.backend == backend).expect("a row").login;
    let rows = [
        (
            "claude",
            0,
            "{\n  \"loggedIn\": true,\n  \"authMethod\": \"api_key\"\n}\n",
            "",
            Some(true),
        ),
        (
            "claude",
            1,
            "{\n  \"loggedIn\": false,\n  \"authMethod\": \"none\"\n}\n",
            "",
            Some(false),
        ),
        ("claude", 1, "error: unknown command 'auth'", "", None),
        ("codex", 0, "Logged in using ChatGPT\n", "", Some(true)),
        ("codex", 1, "", "Not logged in\n", Some(false)),
        ("codex", 1, "", "Error loading configuration: invalid type\n", None),
        ("cursor", 0, "{\"status\":\"authenticated\",\"isAuthenticated\":true}", "", Some(true)),
        (
            "cursor",
            0,
            "{\"status\":\"unauthenticated\",\"isAuthenticated\":false}",
            "",
            Some(false),
        ),
        ("cursor", 0, "Not logged in", "", None),
        ("gemini", 0, "", "", None),
    ];
    for (backend, code, out, err, expected) in rows {
        assert_eq!(of(backend).read(Some(code), out, err), expected, "{backend}: {out}{err}");
    }
}

#[test]
fn cursors_list_in_all_its_forms() {
    let recorded = "Available models\n\nauto - Auto (current, default)\n\
        gpt-5.3-codex-low - Codex 5.3 Low\nclaude-opus-5-thinking-high - Opus 5 1M Thinking\n\n\
        Tip: use --model <id> (or /model <id> in interactive mode) to switch.\n";
    let expected = listed(&[
        ("auto", Some("Auto")),
        ("gpt-5.3-codex-low", Some("Codex 5.3 Low")),
        ("claude-opus-5-thinking-high", Some("Opus 5 1M Thinking")),
    ]);
    let coloured = recorded
        .replace("auto", "\x1b[1mauto\x1b[0m")
        .replace("Auto", "\u{200b}Auto\u{feff}")
        .replace("Available", "\x1b[2K\x1b[1G\x1b]0;title\x07Available");
    for text in [recorded.to_owned(), coloured, recorded.replace('\n', "\r\n")] {
        assert_eq!(cursor_models(&sanitize(&text)), Some(expected.clone()), "{text}");
    }
    let rows = [
        ("a - A (current)", listed(&[("a", Some("A"))])),
        ("  a - A (default)  ", listed(&[("a", Some("A"))])),
        ("a - A (default,current)", listed(&[("a", Some("A"))])),
        ("a - A (current) (default)", listed(&[("a", Some("A"))])),
        ("a - A (Preview) (current)", listed(&[("a", Some("A (Preview)"))])),
        ("a - A (NO ZDR)", listed(&[("a", Some("A (NO ZDR)"))])),
        ("a - A - fast - 1M", listed(&[("a", Some("A - fast - 1M"))])),
        ("a (current)", listed(&[("a", None)])),
        ("Tip: use a - or b", vec![]),
        ("No models available for this account.", vec![]),
        ("Loading models…\n", vec![]),
        ("", vec![]),
    ];
    for (text, expected) in rows {
        assert_eq!(cursor_models(text), Some(expected), "{text}");
    }
}

#[test]
fn the_lists_of_codex_opencode_copilot_and_droid() {
    let codex = r#"{"models":[
        {"slug":"gpt-6-astra","display_name":"GPT-6-Astra","visibility":"list","priority":2,"base_instructions":"…"},
        {"slug":"gpt-6.1-sol","display_name":"GPT-6.1-Sol","visibility":"list","priority":1},
        {"slug":"codex-auto-review","display_name":"Codex Auto Review","visibility":"hide","priority":43},
        {"slug":"gpt-5.5","visibility":"list"}]}"#;
    let expected = [
        ("gpt-6.1-sol", Some("GPT-6.1-Sol")),
        ("gpt-6-astra", Some("GPT-6-Astra")),
        ("gpt-5.5", None),
    ];
    assert_eq!(codex_models(codex), Some(listed(&expected)));
    assert_eq!(codex_models("error"), None);

    let opencode = "opencode/big-pickle\nopenrouter/anthropic/claude-opus-5\n\nno / list\n";
    let expected = [("opencode/big-pickle", None), ("openrouter/anthropic/claude-opus-5", None)];
    assert_eq!(opencode_models(opencode), Some(listed(&expected)));

    let copilot = "  `logLevel`: level\n    - \"none\"\n\n  `model`: AI model to use.\n    \
        - \"claude-opus-5.5\"\n    - \"gpt-6-sol\"\n\n  `mouse`: whether\n    - \"on\"\n";
    let expected = [("claude-opus-5.5", None), ("gpt-6-sol", None)];
    assert_eq!(copilot_models(copilot), Some(listed(&expected)));
    assert_eq!(copilot_models("nothing"), None);

    let droid = "Usage: droid exec\n\nAvailable Models:\n  gpt-5.6-sol                  \
        GPT-5.6 Sol (default)\n  inkling                      Inkling (Droid Core)\n  glm-5    \
        GLM-5 (Droid Core) [Deprecated]\n\nModel details:\n  - Sol  x: supports\n";
    let expected =
        [("gpt-5.6-sol", Some("GPT-5.6 Sol")), ("inkling", Some("Inkling (Droid Core)"))];
    assert_eq!(droid_models(droid), Some(listed(&expected)));
    assert_eq!(droid_models("nothing"), None);
}

#[test]
fn the_provider_of_an_id() {
    let rows = [
        ("Claude", "opus"),
        ("Claude", "claude-opus-5-thinking-high"),
        ("Claude", "openrouter/anthropic/claude-sonnet-5"),
        ("Claude", "sonnet-4.6"),
        ("OpenAI", "gpt-5.3-codex-low"),
        ("OpenAI", "o4-mini"),
        ("OpenAI", "openai/o3"),
        ("OpenAI", "codex-mini-latest"),
        ("Gemini", "gemini-3.1-pro-preview"),
        ("Gemini", "auto-gemini-3"),
        ("Grok", "Grok-4.6"),
        ("Qwen", "qwen3.6-plus"),
        ("Qwen", "coder-model"),
        ("Kimi", "kimi-k2.6"),
        ("DeepSeek", "deepseek-v4-pro"),
        ("GLM", "glm-5.3-flash"),
        ("Cursor", "composer-2"),
        ("Cursor", "auto"),
        ("MiMo", "opencode/mimo-v2.6-flash-free"),
        ("Other", "opencode/big-pickle"),
        ("Other", "foo3"),
        ("Other", "octopus"),
        ("Other", "inkling"),
    ];
    for (expected, id) in rows {
        assert_eq!(provider(id), expected, "{id}");
    }
}

#[test]
fn the_backend_that_should_run_a_model() {
    let listing = |backend: &str, source, ids: &[&str]| Listing {
        backend: backend.into(),
        models: ids.iter().map(|id| Listed { id: (*id).into(), name: None }).collect(),
        source,
        asked: None,
    };
    let listings = [
        listing("gemini", Source::Curated, &["gemini-2.5-pro", "gemini-3-pro"]),
        listing("copilot", Source::Asked, &["gemini-3-pro", "gpt-6-sol", "claude-opus-5"]),
        listing("opencode", Source::Asked, &["opencode/big-pickle"]),
        listing("cursor", Source::Asked, &["grok-4.6", "opus-5"]),
    ];
    let all = ["claude", "codex", "cursor", "gemini", "opencode", "copilot"].as_slice();
    let rows = [
        // Claude's and OpenAI's models, by the words of the id.
        ("opus", all, Some("claude")),
        ("claude-sonnet-4.5", all, Some("claude")),
        ("haiku-4", all, Some("claude")),
        ("fable", all, Some("claude")),
        ("gpt-5.3-codex", all, Some("codex")),
        ("o3", all, Some("codex")),
        ("o1-pro", all, Some("codex")),
        ("o4-mini", all, Some("codex")),
        // Those that only look like them.
        ("o4", all, Some("cursor")),
        ("octopus", all, Some("cursor")),
        ("foo3", all, Some("cursor")),
        // Without the maker's CLI: the one that lists the model, else Cursor's.
        ("opus-5", &["codex", "cursor"], Some("cursor")),
        ("claude-opus-5", &["copilot", "cursor"], Some("copilot")),
        ("gpt-6-sol", &["claude", "copilot"], Some("copilot")),
        ("gpt-6-sol", &["claude", "cursor"], Some("cursor")),
        ("gpt-6-sol", &["claude"], None),
        // Other makers' models: who was asked before what was chosen, and only who is here.
        ("grok-4.6", all, Some("cursor")),
        ("gemini-2.5-pro", all, Some("gemini")),
        ("gemini-2.5-pro", &["claude", "cursor"], Some("cursor")),
        ("gemini-3-pro", all, Some("copilot")),
        // A slash is opencode's form, whatever the words say.
        ("opencode/big-pickle", all, Some("opencode")),
        ("openai/gpt-6-sol", all, Some("opencode")),
        ("openai/gpt-6-sol", &["codex", "cursor"], Some("cursor")),
        ("mistral-large", &["gemini"], None),
    ];
    for (id, present, expected) in rows {
        let backend = preferred_backend(id, present, &listings);
        assert_eq!(backend.as_deref(), expected, "{id} of {present:?}");
    }
}
