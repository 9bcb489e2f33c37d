//! A host that follows the original, step by step.
//!
//! The original's text is replaced by stand-ins of its size: the size in a request's body, with the
//! quotes and line ends of JSON, of version 3.0.0 as published on 2026-04-06. The procedure was
//! carried out once by hand: scripts, prompt and calls made from the original's own examples for
//! these tasks differ from those made here by at most 14 bytes each. With its own SKILL.md in place
//! of the stand-in, the stories cost the same to 0.1 KB.
//!
//! If the procedure leaves a choice, the host takes the cheaper way: parallel calls where none
//! needs another's result, one call for the scaffolding of all tasks and one for the status of all.
//! The host reads only the config, questions and plans.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
};

use nix::libc::O_NONBLOCK;
use serde_json::{Value, json};

use super::{
    Player, Session,
    story::{Scene, Work, Worker},
};
use crate::support::{
    model::Reply,
    process::{Home, wait_until},
    story::{DEADLINE, file, task},
};

/// The size of SKILL.md after its frontmatter; 23,852 bytes in the file.
const SKILL: usize = 24_449;
/// The size of the script that waits for a question or the end; it names the task once.
const MONITOR: usize = 393;
/// The size of the script that starts a Codex; another command's counts the same.
const WRAPPER: usize = 115;
/// The size of the worker's prompt without its context; it names the task four times.
const PROMPT: usize = 797;

/// A home with the stand-in as its skill, and this config.
pub(super) fn ready(config: &str) -> Home {
    let home = Home::new();
    let skill = home.path().join(".claude/skills/dispatch");
    fs::create_dir_all(&skill).expect("the skill's directory");
    let head = "---\nname: dispatch\ndescription: Dispatches.\n---\n";
    fs::write(skill.join("SKILL.md"), format!("{head}{}", of_size(SKILL))).expect("the skill");
    fs::create_dir_all(home.path().join(".dispatch")).expect("the config's directory");
    fs::write(home.path().join(".dispatch/config.yaml"), config).expect("the config");
    home
}

/// A text of that size in JSON.
fn of_size(size: usize) -> String {
    "stand-in ".chars().cycle().take(size).collect()
}

/// A script of that size in JSON, which waits for the story's signal.
fn waits_for(pipe: &str, size: usize) -> String {
    let read = format!("read -r word <~/go/{pipe} # ");
    // The end of the line is two characters in JSON.
    format!("{read}{}\n", of_size(size - read.len() - 2))
}

/// The replies of the model from the start of a scene to its report to the person.
pub(super) fn steps(home: &Home, scene: &Scene) -> Vec<Reply> {
    let mut steps = match scene {
        Scene::Dispatch(_, works) => dispatch(home, works),
        Scene::Asks(work) => {
            let question = task(home, work.job.id).join("ipc/001.question");
            vec![look_for_question(work), Reply::call("Read", json!({ "file_path": question }))]
        }
        Scene::Answer(work) => {
            let answer = format!(".dispatch/tasks/{}/ipc/001.answer", work.job.id);
            let text = work.question.1;
            let write = format!("echo \"{text}\" > {answer}.tmp\nmv {answer}.tmp {answer}");
            vec![bash(&write, "Send the answer").and(monitor(work))]
        }
        Scene::Status(works) => {
            let all = |file: &str| {
                let files =
                    works.iter().map(|work| format!(".dispatch/tasks/{}/{file}", work.job.id));
                files.collect::<Vec<_>>().join(" ")
            };
            let look = format!("cat {}\nls {} 2>/dev/null", all("plan.md"), all("ipc/*.question"));
            vec![bash(&look, "Check progress")]
        }
        Scene::Ends(work) => {
            let plan = format!("cat .dispatch/tasks/{}/plan.md", work.job.id);
            vec![bash(&plan, &format!("Check progress: {}", work.job.id))]
        }
    };
    steps.push(Reply::say(scene.told()));
    steps
}

fn dispatch(home: &Home, works: &[&Work]) -> Vec<Reply> {
    let config = json!({ "file_path": home.path().join(".dispatch/config.yaml") });
    let plans = works.iter().map(|work| {
        let plan = task(home, work.job.id).join("plan.md");
        Reply::call("Write", json!({ "file_path": plan, "content": parts(work).0 }))
    });
    let scaffolds: Vec<String> = works.iter().map(|work| scaffold(work)).collect();
    let ids: Vec<&str> = works.iter().map(|work| work.job.id).collect();
    let about = format!("Set up dispatch scaffolding for {}", ids.join(", "));
    let starts = works.iter().map(|work| worker(work).and(monitor(work)));
    vec![
        Reply::call("Read", config),
        plans.reduce(Reply::and).expect("a task"),
        bash(&scaffolds.join("\n"), &about),
        starts.reduce(Reply::and).expect("a task"),
    ]
}

/// The checklist and the context.
fn parts(work: &Work) -> (&str, &str) {
    work.job.plan.split_once("\n## Context\n").expect("a context")
}

/// The worker's prompt.
fn prompt(work: &Work) -> String {
    let id = work.job.id;
    let begin = format!(".dispatch/tasks/{id}/ ");
    let rest = of_size(PROMPT + 4 * id.len() - begin.len());
    format!("{begin}{rest}\n\nContext:\n{}", parts(work).1)
}

/// The call that creates the files for the worker and the monitor.
fn scaffold(work: &Work) -> String {
    let id = work.job.id;
    let mut call = format!("mkdir -p .dispatch/tasks/{id}/ipc\n");
    let mut scripts = format!("~/go/monitor--{id}.sh");
    if is_process(work) {
        let wrapper = waits_for(id, WRAPPER + id.len());
        call.push_str(&format!(
            "cat > ~/go/dispatch-{id}-prompt.txt << 'PROMPT'\n{}PROMPT\n\
             cat > ~/go/worker--{id}.sh << 'WORKER'\n{wrapper}WORKER\n",
            prompt(work)
        ));
        scripts = format!("~/go/worker--{id}.sh {scripts}");
    }
    let monitor = waits_for(&monitor_of(id), MONITOR + id.len());
    call.push_str(&format!(
        "cat > ~/go/monitor--{id}.sh << 'MONITOR'\n{monitor}MONITOR\nchmod +x {scripts}"
    ));
    call
}

fn look_for_question(work: &Work) -> Reply {
    bash(&format!("ls .dispatch/tasks/{}/ipc/", work.job.id), "Look for the question")
}

fn is_process(work: &Work) -> bool {
    matches!(work.worker, Worker::Codex | Worker::Command)
}

fn worker(work: &Work) -> Reply {
    let id = work.job.id;
    let about = format!("Run dispatch worker: {id}");
    if is_process(work) {
        return background(&format!("bash ~/go/worker--{id}.sh"), &about);
    }
    let mut call = json!({
        "description": about,
        "prompt": prompt(work),
        "subagent_type": "general-purpose",
        "model": work.job.model.split(' ').next(),
        "run_in_background": true,
    });
    if work.worker == Worker::Worktree {
        call["isolation"] = "worktree".into();
    }
    Reply::call("Agent", call)
}

fn monitor(work: &Work) -> Reply {
    let id = work.job.id;
    background(&format!("bash ~/go/monitor--{id}.sh"), &format!("Monitoring progress: {id}"))
}

fn bash(command: &str, about: &str) -> Reply {
    Reply::call("Bash", json!({ "command": command, "description": about }))
}

fn background(command: &str, about: &str) -> Reply {
    let input: Value =
        json!({ "command": command, "description": about, "run_in_background": true });
    Reply::call("Bash", input)
}

/// The pipe from which a task's monitor reads.
pub(super) fn monitor_of(id: &str) -> String {
    format!("{id}.monitor")
}

/// Writes the task's files as the worker does, and wakes the host. The monitor, which looks every
/// three seconds, reports a question and a good end alike, so the host has to look which it is. The
/// monitor reports the end first, since the worker's model has not given its last answer by then.
pub(super) fn acts(session: &mut Session, player: &Player, scene: &Scene, steps: Vec<Reply>) {
    let work = player.work;
    let id = work.job.id;
    let task = task(&session.home, id);
    let looks = |it: &mut Session| tell(&it.home, &monitor_of(id), "look");
    if let Scene::Asks(_) = scene {
        let question = format!("{}\n", work.question.0);
        fs::write(task.join("ipc/001.question"), question).expect("a question");
        return session.tells(vec![scene.told()], steps, looks);
    }
    let plan = file(task.join("plan.md"));
    let plan = match work.error {
        Some(error) => {
            let (title, items) = plan.split_once("\n- [ ] ").expect("an item");
            let (first, rest) = items.split_once('\n').expect("a line");
            format!("{title}\n- [!] {first}\n  {error}\n{rest}")
        }
        None => plan.replace("- [ ]", "- [x]"),
    };
    fs::write(task.join("plan.md"), plan).expect("the plan");
    if work.error.is_none() {
        fs::write(task.join("ipc/.done"), "").expect("the end");
        let told = "No question is open.";
        session.tells(vec![told.into()], vec![look_for_question(work), Reply::say(told)], looks);
    }
    session.tells(vec![scene.told()], steps, |it| {
        if is_process(work) { tell(&it.home, id, "end") } else { player.end.open() }
    });
}

/// Writes a word to the process that reads from this pipe.
pub(super) fn tell(home: &Home, pipe: &str, word: &str) {
    let path = home.path().join("go").join(pipe);
    wait_until(DEADLINE, &format!("{pipe} listens"), || {
        let mut reader =
            OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path).ok()?;
        writeln!(reader, "{word}").ok()
    });
}
