//! What the targets share. What each asserts is beside the code that it is about, in modules named `fuzzing`.

use tokio::runtime::Builder;

/// Runs one input to its end. The clock passes by itself whenever nothing else can happen.
///
/// # Panics
/// When `input` does.
pub fn run(input: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(input);
}
