//! Worker processes: an engine whose code may abort loads its models there, so that a crash fails an action and not the build.
//!
//! A worker is this program, started as `forge exec --worker`. It runs the same work from the same documents, writes blobs to
//! the same store, and answers with their digests; the build looks results up, holds the locks and commits. A worker stays for
//! many actions, with its models loaded. It ends when its standard input does, so it does not outlive a build that is killed.

mod client;
mod isolated;
mod protocol;
mod server;

pub(super) use client::Worker;
pub use client::Workers;
pub use server::serve;
