//! UDP sockets for hickory that are connected, so that the kernel drops what other hosts send, and
//! on which a refusal (ICMP port unreachable) ends a try at once. tokio reports such an error to
//! those who wait for errors, not to those who wait for data, so both are waited for.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioRuntimeProvider, TokioTime,
};
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

type Opening<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

pub(super) struct Connected {
    socket: Arc<UdpSocket>,
    failure: Mutex<Fuse<BoxFuture<'static, io::Error>>>,
}

impl Connected {
    async fn open(local: SocketAddr, server: SocketAddr) -> io::Result<Connected> {
        let socket = Arc::new(UdpSocket::bind(local).await?);
        socket.connect(server).await?;
        let failure = Mutex::new(failure(Arc::clone(&socket)).boxed().fuse());
        Ok(Connected { socket, failure })
    }
}

/// Waits for the socket's pending error.
async fn failure(socket: Arc<UdpSocket>) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        let taken = socket.try_io(Interest::ERROR, || {
            socket
                .take_error()?
                .ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        match taken {
            Ok(error) => return error,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}

impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buf = ReadBuf::new(buf);
        if let Poll::Ready(received) = self.socket.poll_recv_from(cx, &mut buf) {
            return Poll::Ready(received.map(|from| (buf.filled().len(), from)));
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.poll_unpin(cx).map(Err)
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buf, target)
    }
}

/// hickory's view of tokio, with such sockets.
#[derive(Clone, Default)]
pub(super) struct Provider(TokioRuntimeProvider);

impl RuntimeProvider for Provider {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        self.0.connect_tcp(server, bind, timeout)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        Box::pin(Connected::open(local, server))
    }
}
