//! What the server tells of what happened: `GET /events`, and its log.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Host, Server, eventually, kill, scaled};

/// The events that match a query.
fn events(server: &Server, query: &str) -> Vec<Value> {
    let answer = server.raw("GET", &format!("/events?{query}"), "", b"");
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/x-ndjson")),
        "{answer:?}"
    );
    answer.text.lines().filter_map(event).collect()
}

/// The event on a line of a chunked body: chunks end where lines do, and the lines between them are no objects.
fn event(line: &str) -> Option<Value> {
    line.starts_with('{').then(|| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().expect("a kind")).collect()
}

/// Somebody who follows the events.
fn follow(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("connect to the server");
    stream.set_read_timeout(Some(scaled(30))).expect("set a time limit");
    let request = b"GET /events?since=0&follow=1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).expect("send the request");
    stream
}

#[test]
fn the_life_of_a_sandbox_is_told_in_order_and_nothing_of_what_it_ran() {
    let _host = Host::enter();
    let server = Server::start();
    let (id, other) = (server.create(), server.create());
    assert_eq!(server.sh(&id, "echo print$((41+1)); exit 3")["exit_code"], 3);
    let limited = json!({"sandbox_id": id, "cmd": "sleep 99", "timeout_ms": 200});
    server.post("/exec", &limited).error(504, "exec_timeout");
    let snapshot = server.snapshot(&id);
    server.destroy(&id).ok();
    let restored = server.restore(&snapshot);

    let life = events(&server, &format!("sandbox_id={id}"));
    assert_eq!(kinds(&life), ["created", "ready", "exec", "exec", "snapshot", "destroyed"]);
    assert!(life.iter().all(|event| event["sandbox_id"] == *id), "{life:#?}");
    assert_eq!((&life[2]["exit_code"], life[2].get("reason")), (&json!(3), None));
    assert_eq!((life[3].get("exit_code"), &life[3]["reason"]), (None, &json!("exec_timeout")));
    assert!(life[3]["duration_us"].as_u64() >= Some(200_000), "{}", life[3]);
    assert_eq!((&life[4]["snapshot_id"], &life[5]["reason"]), (&json!(snapshot), &json!("requested")));
    let born = events(&server, &format!("sandbox_id={restored}"));
    assert_eq!((kinds(&born), &born[0]["snapshot_id"]), (vec!["created", "ready"], &json!(snapshot)));

    let all = events(&server, "");
    let numbers: Vec<_> = all.iter().map(|event| event["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(all.is_sorted_by_key(|event| event["unix_ms"].as_u64()), "{all:#?}");
    let text = serde_json::to_string(&all).expect("text");
    assert!(text.contains(&other) && !text.contains("print") && !text.contains("sleep"), "{text}");
    let last = numbers.len();
    assert_eq!(events(&server, &format!("since={}", last - 2)), all[last - 2..]);
    assert_eq!(events(&server, &format!("since={last}&follow=0")), [] as [Value; 0]);
    eventually("the log has them, too", scaled(10), || {
        let log = server.log();
        let mut lines = log.lines().filter(|line| line.contains("manta::events") && line.contains(&id));
        lines.any(|line| line.contains("event=\"destroyed\"") && line.contains("reason=\"requested\""))
    });
}

#[test]
fn what_ends_a_sandbox_is_told() {
    let _host = Host::enter();
    let server = Server::start();
    let crashed = server.create();
    let expired = server.post("/create", &json!({"timeout_s": 1})).ok()["sandbox_id"].clone();
    let expired = expired.as_str().expect("an id");
    eventually("one expires", scaled(20), || server.info(expired).is_none());
    let told = events(&server, &format!("sandbox_id={expired}"));
    assert_eq!(kinds(&told), ["created", "ready", "expired", "destroyed"]);
    assert_eq!(told[3]["reason"], "expired");

    kill(server.vmm_of(&crashed));
    let of_crashed = format!("sandbox_id={crashed}");
    eventually("the other crashes", scaled(20), || kinds(&events(&server, &of_crashed)).len() == 3);
    let told = events(&server, &of_crashed);
    assert_eq!(kinds(&told), ["created", "ready", "crashed"]);
    assert!(told[2]["reason"].as_str().expect("a reason").contains("VMM"), "{told:#?}");
    server.destroy(&crashed).ok();
    assert_eq!(events(&server, &of_crashed)[3]["reason"], "crashed");
}

#[test]
fn events_outlive_their_server_and_their_numbers_go_on() {
    let _host = Host::enter();
    let seq = |event: &Value| event["seq"].as_u64().expect("a number");
    let server = Server::start();
    let id = server.create();
    let before = events(&server, "");
    // One that ends by itself loses nothing.
    let second = Server::in_dir(server.end(), &[]);
    let all = events(&second, "");
    assert_eq!(all[..before.len()], before);
    assert_eq!(
        (&all[before.len()]["event"], &all[before.len()]["sandbox_id"]),
        (&json!("destroyed"), &json!(id))
    );
    assert!(all.windows(2).all(|pair| seq(&pair[0]) + 1 == seq(&pair[1])), "{all:#?}");
    assert_eq!(events(&second, "since=1"), all[1..]);

    let id = second.create();
    let of_it = format!("sandbox_id={id}");
    let newest = seq(events(&second, "").last().expect("events"));
    // They are written behind: soon.
    let journal = second.work_dir.join("journal.db-wal");
    eventually("they are written", scaled(10), || {
        let journal = std::fs::read(&journal).expect("the journal");
        let ready = format!("\"event\":\"ready\",\"sandbox_id\":\"{id}\"");
        journal.windows(ready.len()).any(|window| window == ready.as_bytes())
    });
    let third = Server::in_dir(second.kill(), &[]);
    let told = events(&third, &format!("since={newest}"));
    assert_eq!(kinds(&told)[..2], ["lost", "adopted"], "{told:#?}");
    assert_eq!(told[0].get("lost"), None, "nobody knows how many the last moment had");
    assert!(seq(&told[1]) > newest + 1, "no number comes twice");
    let told = events(&third, &of_it);
    let of_it: Vec<_> = told.iter().filter(|event| event["event"] != "lost").cloned().collect();
    assert_eq!(kinds(&of_it), ["created", "ready", "adopted"]);
    let everything = events(&third, "");
    assert_eq!(everything[..all.len()], all);
}

#[test]
fn a_follower_gets_what_happens_until_the_server_ends() {
    let _host = Host::enter();
    let mut server = Server::start();
    let mut lines = BufReader::new(follow(&server)).lines().map(|line| line.expect("a line"));
    let mut until = |kind: &str, id: &str| {
        lines
            .by_ref()
            .filter_map(|line| event(&line))
            .find(|event| event["event"] == kind && event["sandbox_id"] == id)
            .unwrap_or_else(|| panic!("no {kind} of {id}"))
    };
    // As they happen: each is read before the next thing is done.
    let id = server.create();
    until("ready", &id);
    server.stdout(&id, "true");
    assert_eq!(until("exec", &id)["exit_code"], 0);
    // One who never reads, and one who hung up, hold up nobody.
    let idle = follow(&server);
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < scaled(10), "the shutdown waited: {:?}", began.elapsed());
    assert!(!server.log().contains("connections still open"), "{}", server.log());
    assert_eq!(until("destroyed", &id)["reason"], "shutdown");
    assert_eq!(lines.find_map(|line| event(&line)), None, "the stream ends after the last event");
    drop(idle);
}

#[test]
fn a_follower_that_hangs_up_is_forgotten() {
    let _host = Host::enter();
    let server = Server::start();
    let followers: Vec<_> = (0..5).map(|_| follow(&server)).collect();
    eventually("they are served", scaled(10), || server.connections() == followers.len());
    drop(followers);
    eventually("they are forgotten, though nothing happens", scaled(10), || server.connections() == 0);
}

#[test]
fn a_query_that_makes_no_sense_is_refused() {
    let _host = Host::enter();
    let server = Server::start();
    for query in ["since=-1", "since=x", "follow=2", "sandbox_id=sb-0", "colour=1"] {
        let message = server.raw("GET", &format!("/events?{query}"), "", b"").error(400, "bad_request");
        let name = query.split('=').next().expect("a name");
        assert!(message.contains(name) || message.contains("sandbox"), "{query}: {message}");
    }
}
