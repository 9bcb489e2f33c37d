mod claude;
mod codex;
mod model;
mod process;
mod request;
