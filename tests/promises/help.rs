//! The help pages: a summary, a paragraph, the options, the exit codes and an example.

use snapbox::str;

use crate::support::Sandbox;
use crate::support::text::same;

/// The pages of a helper and all its commands.
fn pages(helper: &str, commands: &[&str]) -> String {
    let sandbox = Sandbox::new();
    let mut pages = sandbox.ok(helper, &["--help"]);
    for command in commands {
        let page = sandbox.ok(helper, &[command, "--help"]);
        pages.push_str(&format!("\n==== {helper} {command}\n{page}"));
    }
    assert!(pages.lines().all(|line| line.chars().count() <= 100), "{pages}");
    pages.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn reconcile_pages_explain_every_command() {
    let commands = ["status", "show", "statusline", "watch", "stop", "merge", "clean", "note"];
    same(
        &pages("dispatch-reconcile", &commands),
        str![[r#"
Show and manage tasks

A task belongs to the project it was dispatched in: the repository or the
directory with `.dispatch/tasks`. Without a command, the status is shown.

Usage: dispatch-reconcile [OPTIONS] [COMMAND]

Commands:
  status      Show all tasks, most urgent first (the default)
  show        Show one task: plan, questions, notes, attempts, cost, commits and logs
  statusline  Print the number of tasks in each state, for Claude Code's status line
  watch       Show all tasks live on this terminal, with keys to answer, stop and read logs
  stop        Stop a task's worker
  merge       Merge a task's branch into the branch that is checked out here
  clean       Remove finished tasks, and their worktrees if no work would be lost
  adopt       Take over the tasks of a project that was moved, copied, replaced or restored
  note        Send a note to a task's worker, at the end of its plan
  help        Print this message or the help of the given subcommand(s)

Options:
      --all
          Also show tasks that were done over a day ago, and the total cost

      --json
          Print JSON

      --follow
          Keep running and print a line for each task that changes (for a screen reader)

      --color <WHEN>
          Colour the table: `auto` does so on a terminal, unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 done, 1 failed, 64 wrong arguments, 65 no such task or a broken
file, 75 not now (a worker is running)

Example: dispatch-reconcile show fix-login-bug

==== dispatch-reconcile status
Show all tasks, most urgent first (the default)

Crashes are repaired first: unseen ends are recorded, tasks without a supervisor
restart, and temporary files of dead writers are removed. A terminal gets a
table, a pipe one line for each task. The command that helps a task on stands
after `→`. Tasks that were done over a day ago are only counted.

Usage: dispatch-reconcile status [OPTIONS]

Options:
      --all
          Also show tasks that were done over a day ago, and the total cost

      --json
          Print JSON

      --follow
          Keep running and print a line for each task that changes (for a screen reader)

      --color <WHEN>
          Colour the table: `auto` does so on a terminal, unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 shown, 64 wrong arguments, 65 `.dispatch` is a symlink

Example: dispatch-reconcile status --all

==== dispatch-reconcile show
Show one task: plan, questions, notes, attempts, cost, commits and logs

Text in quotation marks is the worker's. A session of Claude Code that is shown
its own task is not woken for that news again.

Usage: dispatch-reconcile show [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
      --json
          Print JSON

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 shown, 64 wrong arguments, 65 no such task or a broken file

Example: dispatch-reconcile show fix-login-bug

==== dispatch-reconcile statusline
Print the number of tasks in each state, for Claude Code's status line

Claude Code sends a status line JSON with the directory on standard input.
Nothing is printed if no task is open; nothing is repaired, and nothing fails.

Usage: dispatch-reconcile statusline [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit code: 0

Example: echo '{"cwd":"/home/me/shop"}' | dispatch-reconcile statusline

==== dispatch-reconcile watch
Show all tasks live on this terminal, with keys to answer, stop and read logs

The last line shows the keys. Without a terminal, the status is printed once.

Usage: dispatch-reconcile watch [OPTIONS]

Options:
      --color <WHEN>
          Colour the screen: `auto` does so unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 left, 1 failed, 64 wrong arguments, 65 `.dispatch` is a symlink

Example: dispatch-reconcile watch

==== dispatch-reconcile stop
Stop a task's worker

The worker gets 10 seconds to end by itself. Its changes stay, and
`dispatch-spawn TASK --resume` continues the task. For an agent of Claude Code,
the call that ends it is printed.

Usage: dispatch-reconcile stop [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 stopped, or had ended already, 1 cannot stop it, 64 wrong
arguments, 65 no such task, 75 a process is still running

Example: dispatch-reconcile stop fix-login-bug

==== dispatch-reconcile merge
Merge a task's branch into the branch that is checked out here

The worker must have ended and committed its work. A merge with conflicts lists
them and changes nothing.

Usage: dispatch-reconcile merge [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
      --onto
          Take only the task's commits, after those that are checked out here

      --pr
          Merge nothing; print the commands that push the branch and open a draft pull request

      --uncommitted
          Commit what the worker left uncommitted, and merge that too

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 merged, 1 failed and changed nothing, 64 wrong arguments, 65 not
possible, with the reason, 75 the worker is running

Example: dispatch-reconcile merge fix-login-bug

==== dispatch-reconcile clean
Remove finished tasks, and their worktrees if no work would be lost

Without a name, all tasks that are done are removed. A failed, stopped or
blocked task is only removed by name. Work that exists nowhere else is kept, and
so is the report (in `.dispatch/reports`).

Usage: dispatch-reconcile clean [OPTIONS] [TASK]...

Arguments:
  [TASK]...
          The tasks to remove, also failed or stopped ones [default: all that are done]

Options:
      --older-than <DURATION>
          Only tasks that ended at least this long ago, like 7d

      --dry-run
          Show what would be removed, and remove nothing

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 done, 1 a named task was kept, 64 wrong arguments, 65 no such task

Example: dispatch-reconcile clean --older-than 7d --dry-run

==== dispatch-reconcile note
Send a note to a task's worker, at the end of its plan

A running worker sees the note at its next call of a helper; a later worker sees
it in its prompt.

Usage: dispatch-reconcile note [OPTIONS] <TASK> <TEXT|->

Arguments:
  <TASK>
          The task's id

  <TEXT|->
          The note; - reads it from standard input

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 noted, 64 wrong arguments, 65 no such task, or it is done

Example: dispatch-reconcile note fix-login-bug 'Keep the old API.'

"#]],
    );
}

#[test]
fn wrong_arguments_point_to_help_of_their_command() {
    let sandbox = Sandbox::new();
    let run = |helper: &str, args: &[&str]| sandbox.run(helper, args);
    run("dispatch-reconcile", &["show"]).shows(str![[r#"
exit 64
! dispatch-reconcile: the following required arguments were not provided: <TASK>
!   next: see dispatch-reconcile show --help
"#]]);
    run("dispatch-reconcile", &["clean", "--older-than", "soon"]).shows(str![[r#"
exit 64
! dispatch-reconcile: invalid value 'soon' for '--older-than <DURATION>': expected number at 0
!   next: see dispatch-reconcile clean --help
"#]]);
    run("dispatch-reconcile", &["stop", "x", "--json"]).shows(str![[r#"
exit 64
! dispatch-reconcile: unexpected argument '--json' found
!   to pass '--json' as a value, use '-- --json'
!   next: see dispatch-reconcile stop --help
"#]]);
    run("dispatch-reconcile", &["--json", "stop", "x"]).shows(str![[r#"
exit 64
! dispatch-reconcile: an option of a command was given before the command
!   next: put it after the command
"#]]);
    run("dispatch-reconcile", &["status", "--color", "blue"]).shows(str![[r#"
exit 64
! dispatch-reconcile: invalid value 'blue' for '--color <WHEN>' [possible values: auto, always, never]
!   next: see dispatch-reconcile status --help
"#]]);
}

#[test]
fn helper_without_its_command_prints_commands() {
    let ran = Sandbox::new().run("dispatch-config", &[]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    assert!(ran.err.contains("\nCommands:\n") && ran.err.contains("  resolve "), "{}", ran.err);
}
