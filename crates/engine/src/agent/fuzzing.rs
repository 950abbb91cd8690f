//! A hostile agent played from bytes, at a real session, and what must hold whatever it says. Called by the fuzz
//! target `session`, and in tests with its seeds.
#![allow(clippy::unwrap_used)] // none of the product

use std::cell::Cell;
use std::future::pending;
use std::time::Duration;

use manta_agent_proto::{
    Adopt, Channel, Decoder, Exec, ExecExit, Frame, Hello, MAX_DATA, PROTOCOL_VERSION, Program, Reply,
    Request, Resume, encode,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Output, Redial, Session};

/// The session's name: that of its first hello.
const NAME: u64 = 7;
/// How long either end waits for the other.
const STEP: Duration = Duration::from_secs(10);
const EXEC_LIMIT: Duration = Duration::from_secs(60);
/// Many times what all limits amount to.
const FOR_EVER: Duration = Duration::from_secs(3600);
const OUTPUT_LIMIT: u64 = 300_000;
/// Of the second command, bytes: little, or, which takes its time, more than the window, so that it waits for credit.
const INPUT: [usize; 2] = [3000, 300_000];
/// The agent also speaks of streams that there are not.
const IDS: u8 = 6;

/// Opens a session, runs three commands and a parking at once, and ends, whatever the agent does that `script`
/// stands for. The clock must be paused.
///
/// # Panics
/// When it does not end, or when a command is answered with what was said on another stream.
pub async fn session(script: &[u8]) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (links, dialled) = mpsc::unbounded_channel();
    let dial = move || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = links.send(theirs).map_err(|_| "nobody answers".to_owned());
        Box::pin(async move { sent.map(|()| ours) }) as _
    };
    let redial = Redial { dial: Box::new(dial), limit: STEP, vmm_pid: 0 };
    let babbled = Cell::new(false);
    let input = INPUT[usize::from(script.first().is_some_and(|first| *first >= 128))];
    let (script, link, decoder) = (Script(script), Some(theirs), Decoder::new());
    let mut agent = Hostile { script, link, dialled, decoder, hello: None, babbled: &babbled };
    let ended = timeout(FOR_EVER, async {
        tokio::select! {
            ended = use_it(ours, redial, input) => ended,
            never = agent.play() => never,
        }
    });
    let ended = ended.await.expect("a session ends, whatever the agent does");
    for (id, (exit, output)) in (1..).zip(ended.into_iter().flatten()) {
        assert!(output.stdout.len().max(output.stderr.len()) as u64 <= OUTPUT_LIMIT, "more than the limit");
        if babbled.get() {
            continue; // who knows what it has said
        }
        let said = output.stdout.iter().chain(&output.stderr);
        assert!(said.into_iter().all(|byte| *byte == id), "command {id} was given output of another");
        assert!(
            exit.is_none_or(|exit| exit.exit_code == i32::from(id)),
            "command {id} was given an exit of another"
        );
    }
}

type Ended = (Option<ExecExit>, Output);

/// What a sandbox's life asks of a session; none when there is no session.
async fn use_it(stream: UnixStream, redial: Redial, input: usize) -> Option<[Ended; 3]> {
    let adopt = Adopt { entropy: vec![7; 32], unix_ns: 1, identity: None };
    let (session, _) = timeout(STEP, Session::open(stream, NAME, adopt.clone(), redial)).await.ok()?.ok()?;
    let parking = async {
        if session.park(STEP).await.is_ok() && session.resume().await.is_ok() {
            let _ = session.adopt(adopt, STEP).await;
        }
    };
    // In this order they get the streams 1, 2 and 3.
    let (first, second, third, ()) =
        tokio::join!(command(&session, 0), command(&session, input), command(&session, 0), parking);
    Some([first, second, third])
}

async fn command(session: &Session, input: usize) -> Ended {
    let exec = Exec {
        program: Program::Shell("true".to_owned()),
        cwd: None,
        env: Vec::new(),
        timeout_ms: 1,
        output_limit: OUTPUT_LIMIT,
        stdin: input > 0,
    };
    let mut output = Output::default();
    let ran = timeout(EXEC_LIMIT, session.exec(exec, vec![0; input].into(), &mut output)).await;
    if let Ok(Err(error)) = &ran {
        assert!(error.to_string().len() <= 1000, "much of the agent's words");
    }
    (ran.ok().and_then(Result::ok), output)
}

/// Bytes as decisions.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// The agent's end.
struct Hostile<'a> {
    script: Script<'a>,
    link: Option<UnixStream>,
    dialled: mpsc::UnboundedReceiver<UnixStream>,
    decoder: Decoder,
    /// The host's last.
    hello: Option<Hello>,
    /// It has said bytes that are no frames, and may amount to any.
    babbled: &'a Cell<bool>,
}

impl Hostile<'_> {
    /// Follows the script, and then says nothing more.
    async fn play<T>(&mut self) -> T {
        while let Some(act) = self.script.byte() {
            self.act(act).await;
        }
        pending().await
    }

    async fn act(&mut self, act: u8) {
        match act % 16 {
            0 => {
                let length = self.script.number();
                let bytes = self.script.bytes(length.into());
                self.babbled.set(true);
                self.write(bytes).await;
            }
            1 => {
                let bytes = self.frame();
                let length = usize::from(self.script.number()).min(bytes.len());
                self.babbled.set(true);
                self.write(&bytes[..length]).await;
            }
            2 => {
                let bytes = self.frame();
                for _ in 0..=self.script.number() {
                    self.write(&bytes).await;
                }
            }
            3 => {
                self.link = None;
                (self.decoder, self.hello) = (Decoder::new(), None);
                if let Ok(link) = timeout(STEP, self.dialled.recv()).await {
                    self.link = link;
                }
            }
            4 => sleep(Duration::from_millis(50) * self.script.number().into()).await,
            5 | 6 => self.listen().await,
            7 => {
                // As an honest one begins.
                self.listen().await;
                let resume = self.hello.as_ref().and_then(|hello| hello.resume);
                let hello = self.answer(resume);
                self.write(&hello).await;
                let adopted = Frame::Reply { id: 0, reply: Reply::Adopted { unix_ns: 1 } };
                self.write(&encoded(&adopted)).await;
            }
            _ => {
                let bytes = self.frame();
                self.write(&bytes).await;
            }
        }
    }

    /// Some frame.
    fn frame(&mut self) -> Vec<u8> {
        let kind = self.script.number();
        let which = self.script.number() % IDS;
        let (id, value) = (u32::from(which), self.script.number());
        let channel = [Channel::Stdin, Channel::Stdout, Channel::Stderr][usize::from(value % 3)];
        let exit_code = i32::from(which);
        encoded(&match kind % 16 {
            0..=4 => {
                let length = (usize::from(value / 3) * 200).min(MAX_DATA);
                Frame::Data { id, channel, bytes: vec![which; length] }
            }
            5 | 6 => Frame::Reply {
                id,
                reply: Reply::Exit(ExecExit {
                    exit_code,
                    timed_out: false,
                    stdout_truncated: false,
                    stderr_truncated: false,
                    duration_us: 1,
                }),
            },
            7 => Frame::Reply { id, reply: Reply::Done },
            8 => Frame::Reply { id, reply: Reply::Adopted { unix_ns: 1 } },
            9 => Frame::Reply { id, reply: Reply::Failed { message: "x".repeat(usize::from(value) * 900) } },
            10 => Frame::Credit { id, channel, bytes: u32::from(value) << (value % 25) },
            11 | 12 => Frame::Ack { frames: value.into() },
            13 => return self.answer(Some(Resume { session: NAME, received: value.into() })),
            14 => Frame::Eof { id, channel },
            _ if value == 0 => Frame::Cancel { id },
            _ => Frame::Request { id, request: Request::Ping },
        })
    }

    /// The answer to the host's hello, if it has said one.
    fn answer(&self, resume: Option<Resume>) -> Vec<u8> {
        let session = self.hello.as_ref().map_or(NAME, |hello| hello.session);
        encoded(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session, resume }))
    }

    /// Takes in what the host has said up to now.
    async fn listen(&mut self) {
        sleep(Duration::from_millis(1)).await;
        let Some(link) = &self.link else { return };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = link.try_read(&mut buffer) {
            self.decoder.feed(&buffer[..length]);
            while let Some(frame) = self.decoder.next_frame() {
                if let Frame::Hello(hello) = frame.expect("the host says frames") {
                    self.hello = Some(hello);
                }
            }
        }
    }

    /// Says that, if the host takes it.
    async fn write(&mut self, bytes: &[u8]) {
        if let Some(link) = &mut self.link {
            let _ = timeout(STEP, link.write_all(bytes)).await;
        }
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes).unwrap();
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn play(script: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(session(script));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_agent_confuses_a_session(script in prop::collection::vec(any::<u8>(), 0..400)) {
            play(&[&[7], script.as_slice()].concat());
        }
    }

    #[test]
    fn nor_do_the_seeds() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/session");
        let seeds: Vec<_> = std::fs::read_dir(seeds).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            play(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
