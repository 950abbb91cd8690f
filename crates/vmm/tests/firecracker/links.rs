//! Links to the agent that are refused, that die, or that nobody answers.

use manta_vmm::{Origin, VmmError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake_firecracker::{Fake, Trouble, accept_connect, grant, program};
use crate::ground::Ground;
use crate::{parent, read_exactly, spawn, spawn_from, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_link_is_asked_for_again_at_once() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let (first, call) = within(async { tokio::join!(vm.connect_agent(), fake.guest_calls(5252)) }).await;
    drop((first.unwrap(), call.unwrap()));
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            drop(accept_connect(&vsock).await);
            grant(&mut accept_connect(&vsock).await.1).await;
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;

    // A link that dies after the OK ends its stream; the next one works.
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            accept_connect(&vsock).await.1.write_all(b"OK 1\n").await.unwrap();
        })
    })
    .await;
    assert_eq!(within(stream.unwrap().read(&mut [0; 1])).await.unwrap(), 0);
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async { grant(&mut accept_connect(&vsock).await.1).await })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;

    // Refused again and again is an error, while the VMM lives.
    let refuse = async {
        loop {
            drop(accept_connect(&vsock).await);
        }
    };
    let error = within(async {
        tokio::select! { stream = vm.connect_agent() => stream.unwrap_err(), () = refuse => unreachable!() }
    })
    .await;
    assert!(matches!(error, VmmError::AgentLink(_)), "{error:?}");
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_link_that_gets_lost_is_made_again_and_one_that_is_late_counts() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn_from(&ground, &program(&ground), &Origin::Snapshot(parent(&ground))).await.unwrap();
    vm.start().await.unwrap();
    // Restored: it is the host that calls, and it hears nothing.
    let (stream, lost) = within(async {
        tokio::join!(vm.connect_agent(), async {
            let lost = accept_connect(&vsock).await;
            grant(&mut accept_connect(&vsock).await.1).await;
            lost
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;
    drop(lost);

    // What Firecracker gives up when it gets the next request is no refusal.
    let (stream, late) = within(async {
        tokio::join!(vm.connect_agent(), async {
            let mut late = accept_connect(&vsock).await.1;
            for _ in 0..4 {
                drop(accept_connect(&vsock).await);
            }
            grant(&mut late).await;
            late
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;
    drop(late);
    drop(fake);
    vm.kill().await.unwrap();
    ground.finish();
}
