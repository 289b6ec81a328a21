//! Drops a future before it is done, as a time-out or a shutdown does.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

#[derive(Debug, Clone, Copy)]
pub enum Interruption {
    /// When it waits for the so-many-th time, from 1.
    Polls(usize),
    /// After so long, wherever it is; tokio's timer would know only whole milliseconds.
    After(Duration),
}

impl Interruption {
    /// `None`: it was dropped.
    pub async fn of<T>(self, mut future: Pin<Box<dyn Future<Output = T> + Send + '_>>) -> Option<T> {
        match self {
            Self::Polls(limit) => {
                let mut polls = 0;
                poll_fn(|context| {
                    polls += 1;
                    match future.as_mut().poll(context) {
                        Poll::Ready(output) => Poll::Ready(Some(output)),
                        Poll::Pending if polls >= limit => Poll::Ready(None),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await
            }
            Self::After(limit) => {
                let (send, receive) = oneshot::channel();
                std::thread::spawn(move || {
                    std::thread::sleep(limit);
                    // Nobody listens any more if the future was faster.
                    send.send(()).ok();
                });
                tokio::select! {
                    output = future => Some(output),
                    _ = receive => None,
                }
            }
        }
    }
}
