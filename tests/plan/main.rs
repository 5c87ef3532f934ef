//! The transfer planner: conversations with it, rules that always hold, and the best that could be done.

mod best;
mod cluster;
mod rules;
mod scripts;
