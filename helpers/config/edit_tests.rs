//! Tables of edits: the text before and after, and the refusals.

use super::*;

pub(super) fn model(id: &str, backend: &str) -> Edit {
    Edit::add_model(id, backend)
}

pub(super) fn set(id: &str, backend: &str) -> Edit {
    Edit::set("models", id, "backend", backend)
}

pub(super) fn backend(name: &str, command: Option<&str>) -> Edit {
    let command = command.map(|command| ("command", command.into()));
    Edit::add("backends", name, command.as_slice())
}

pub(super) fn alias(name: &str, model: &str, prompt: Option<&str>) -> Edit {
    let prompt = prompt.map(|prompt| ("prompt", prompt.into()));
    let fields: Vec<_> = [("model", model.into())].into_iter().chain(prompt).collect();
    Edit::add("aliases", name, &fields)
}

pub(super) fn remove(id: &str) -> Edit {
    Edit::remove("models", id)
}

pub(super) fn default(name: &str) -> Edit {
    Edit::set_default(name)
}

#[test]
fn edits_follow_the_layout_of_their_neighbours() {
    let rows: &[(&str, Edit, &str)] = &[
        // The default.
        ("default: a # c\n", default("b"), "default: b # c\n"),
        ("default: 'a'\n", default("b"), "default: 'b'\n"),
        ("default:\nmodels:\n", default("b"), "default: b\nmodels:\n"),
        ("default: a", default("1.5"), "default: \"1.5\""),
        (
            "# Who\n\n# CLIs\nbackends:\n",
            default("b"),
            "# Who\n\ndefault: b\n\n# CLIs\nbackends:\n",
        ),
        ("---\nmodels:\n...\n", default("b"), "---\ndefault: b\nmodels:\n...\n"),
        ("", default("b"), "default: b\n"),
        ("# nothing", default("b"), "# nothing\ndefault: b"),
        ("\u{feff}default: a\r\n", default("b"), "\u{feff}default: b\r\n"),
        ("default: a\n", default("a"), "default: a\n"),
        (
            "agents:\n  x: {command: y}\ndefault: x\n",
            default("z"),
            "agents:\n  x: {command: y}\ndefault: z\n",
        ),
        // A model goes to its group, and there to its family.
        (
            "models:\n  # Claude\n  opus: { backend: claude } # c\n  # OpenAI\n  o3: { backend: codex }\n",
            model("haiku", "claude"),
            "models:\n  # Claude\n  opus: { backend: claude } # c\n  haiku: { backend: claude }\n  # OpenAI\n  o3: { backend: codex }\n",
        ),
        (
            "models:\n  gpt-5: {backend: cursor}\n  # Google\n  gemini-3: {backend: cursor}\n",
            model("gpt-6", "cursor"),
            "models:\n  gpt-5: {backend: cursor}\n  gpt-6: { backend: cursor }\n  # Google\n  gemini-3: {backend: cursor}\n",
        ),
        (
            "models:\n  a: { backend: x }\n  # c: { backend: x }\n\n# Names\naliases:\n",
            model("b", "z"),
            "models:\n  a: { backend: x }\n  # c: { backend: x }\n  b: { backend: z }\n\n# Names\naliases:\n",
        ),
        (
            "models:\n  opus:           { backend: claude }\n  gpt-5.3-codex:  { backend: codex }\n",
            model("haiku", "claude"),
            "models:\n  opus:           { backend: claude }\n  haiku: { backend: claude }\n  gpt-5.3-codex:  { backend: codex }\n",
        ),
        (
            "models:\n    a:\n        backend: x\n        # own\n    b:\n        backend: z\n",
            model("c", "x"),
            "models:\n    a:\n        backend: x\n        # own\n    c: { backend: x }\n    b:\n        backend: z\n",
        ),
        (
            "models: { a: {backend: x} }\n",
            model("b", "x"),
            "models: { a: {backend: x}, b: { backend: x } }\n",
        ),
        (
            "models: {\n  a: { backend: x }, # c\n  b: { backend: z } # d\n}\n",
            model("e", "z"),
            "models: {\n  a: { backend: x }, # c\n  b: { backend: z }, e: { backend: z } # d\n}\n",
        ),
        ("models:\n", model("b", "x"), "models:\n  b: { backend: x }\n"),
        ("models: ~ # c\n", model("b", "x"), "models: # c\n  b: { backend: x }\n"),
        ("models: {}", model("b", "x"), "models:\n  b: { backend: x }"),
        (
            "models:\n  # Claude\n\n# Names\naliases:\n",
            model("b", "x"),
            "models:\n  # Claude\n  b: { backend: x }\n\n# Names\naliases:\n",
        ),
        ("default: a\n", model("b", "x"), "default: a\nmodels:\n  b: { backend: x }\n"),
        // Another backend.
        ("models:\n  a: { backend: x } # c\n", set("a", "z"), "models:\n  a: { backend: z } # c\n"),
        ("models:\n  a:\n", set("a", "z"), "models:\n  a: { backend: z }\n"),
        // Removal leaves the comments of the group.
        (
            "models:\n  # Claude\n  a: { backend: x } # own\n  # OpenAI\n  b: { backend: z }\n",
            remove("a"),
            "models:\n  # Claude\n  # OpenAI\n  b: { backend: z }\n",
        ),
        ("models:\n  a: { backend: x }", remove("a"), "models:\n"),
        ("models: { a: { backend: x } }\n", remove("a"), "models: { }\n"),
        (
            "models: {a: {backend: x}, b: {backend: z}}\n",
            remove("a"),
            "models: {b: {backend: z}}\n",
        ),
        (
            "models: {a: {backend: x}, b: {backend: z}}\n",
            remove("b"),
            "models: {a: {backend: x}}\n",
        ),
        // Backends and aliases, also behind a block scalar and a last line without a line break.
        (
            "agents:\n  h:\n    command: >\n      h -p\n# end",
            backend("b", None),
            "agents:\n  h:\n    command: >\n      h -p\n# end\nbackends:\n  b: {}",
        ),
        ("backends:\n  a: {}\n", backend("b", None), "backends:\n  a: {}\n  b: {}\n"),
        (
            "backends:\n  a: {}\n",
            backend("b", Some("run \"$(pwd)\"")),
            "backends:\n  a: {}\n  b:\n    command: run \"$(pwd)\"\n",
        ),
        (
            "aliases:\n",
            alias("r", "opus", Some("Look:\n\n  twice.\n")),
            "aliases:\n  r:\n    model: opus\n    prompt: \"Look:\\n\\n  twice.\\n\"\n",
        ),
        (
            "aliases: { q: { model: 'o' } }\n",
            alias("r", "opus", Some("It's\ntwo.")),
            "aliases: { q: { model: 'o' }, r: { model: opus, prompt: \"It's\\ntwo.\" } }\n",
        ),
        ("aliases:\n  q: { model: o }\n", Edit::remove("aliases", "q"), "aliases:\n"),
    ];
    for (before, edit, after) in rows {
        match apply(before, edit) {
            Ok(text) => assert_eq!(&text, after, "{before:?} {edit:?}"),
            Err(refusal) => panic!("{before}\n{edit:?}\n{refusal}"),
        }
    }
}

#[test]
fn impossible_edit_is_refused_with_the_remedy() {
    let rows: &[(&str, Edit, &str)] = &[
        (
            "models:\n  a: { backend: x }\n",
            model("a", "z"),
            "line 2 of the config has it with other",
        ),
        (
            "models:\n",
            remove("a"),
            "cannot remove the model 'a'\n  the config has no such entry below 'models:'",
        ),
        ("models:\n", set("a", "x"), "no such entry"),
        ("models: [a\n", default("a"), "the config is wrong and was not changed"),
        ("default: a\ndefault: b\n", default("a"), "duplicate entry"),
        ("models:\n  a: {}\n  'a': {}\n", default("a"), "duplicate entry"),
        (
            "models:\n  1.5: {}\n  '1.5': {}\n",
            default("a"),
            "'1.5' stands there twice, again in line 3",
        ),
        ("default: a\n---\ndefault: b\n", default("a"), "more than one document"),
        (
            "models: [a]\n",
            model("b", "x"),
            "cannot add the model 'b' without touching more\n  it is not a map in lines\n  next: paste it by hand, at line 1 of the config:\nmodels:\n  b: { backend: x }",
        ),
        (
            "models:\n  a: &m { backend: x }\n  b: *m\n",
            set("a", "z"),
            "change it by hand, line 2 of the config, so that it says:\nmodels:\n  a: { backend: z }",
        ),
        ("models: {\n  a: {},\n  b: {} # own\n}\n", remove("b"), "it is not a map in lines"),
        ("agents:\n  h:\n    command: >\n      h", backend("b", None), "something else"),
        ("{\"default\": \"a\"}", model("b", "x"), "it is not a map in lines"),
        ("models:\n  a: &m {}\n  b: *m\n", set("b", "z"), "it is not a map in lines"),
        ("models:\n  a: &m {}\n  b: *m\n", remove("a"), "the config would not be YAML any more"),
        ("default: >- # c\n  a\n", default("b"), "a comment would be lost"),
        (
            "- a\n",
            alias("r", "opus", None),
            "at the end of the config:\naliases:\n  r:\n    model: opus",
        ),
    ];
    for (text, edit, expected) in rows {
        let refusal = apply(text, edit).expect_err(text).to_string();
        assert!(refusal.contains(expected), "{text}\n{edit:?}\n{refusal}");
    }
}

#[test]
fn unproved_edit_is_refused() {
    let text = "default: a\nmodels:\n  a: { backend: x } # c\n  # d\n  b: { backend: x }\n";
    let at = |piece: &str| text.find(piece).map(|at| at..at + piece.len()).expect("there");
    let (end, backend) = (text.len(), at("x } # c").start..at(" } # c").start);
    type Row<'a> = (Edit, &'a [(Range<usize>, &'a str)], &'a str);
    let rows: &[Row] = &[
        (set("a", "z"), &[(backend.clone(), "z")], ""),
        (set("a", "z"), &[(backend, "y")], "would be read differently"),
        (set("a", "z"), &[(at("x } # c"), "z }")], "a comment would be lost"),
        (set("a", "z"), &[(at("x } # c"), "z }# c")], "a comment would be lost"),
        (remove("b"), &[(at("  # d\n  b: { backend: x }\n"), "")], "bytes beside it"),
        (remove("b"), &[(at("  a: { backend: x } # c\n"), "")], "would be read differently"),
        (model("c", "z"), &[(end..end, "  c: { backend: z }\nnew: 1\n")], "something else"),
        (model("c", "z"), &[(end..end, "  c: { backend: z\n")], "would not be YAML any more"),
        (
            model("c", "z"),
            &[(end..end, "  c: { backend: z }\n  c: {}\n")],
            "would not be YAML any more",
        ),
    ];
    for (edit, splices, expected) in rows {
        let splices: Vec<Splice> =
            splices.iter().map(|(range, new)| (range.clone(), (*new).into())).collect();
        let before = read(text).expect("a config");
        let after = spliced(text, &splices);
        let proved = prove(&before, &splices, &after, edit);
        match proved {
            Ok(()) => assert!(expected.is_empty(), "{after}"),
            Err(why) => assert!(!expected.is_empty() && why.contains(expected), "{after}\n{why}"),
        }
    }
}
