// Compiled, not run: what the declarations allow, and after each @ts-expect-error what they do not.

import net = require('node:net');
import tls = require('node:tls');
import { TLSSplice } from 'node:tls';
import type { FileHandle } from 'node:fs/promises';
import type { TLSSpliceAbortError, TLSSpliceFramingError, TLSSpliceOptions, TLSSpliceStats } from 'node:tls';

// Fails to compile if the two are not the same type.
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false;
function same<A, B>(yes: Same<A, B>) {}

async function all(socket: tls.TLSSocket, stream: net.Socket, file: FileHandle, signal: AbortSignal) {
  // In a Node.js without splices there are none of these.
  console.log(tls.TLSSplice !== undefined);
  // @ts-expect-error
  socket.spliceTo({ fd: 3 });
  // @ts-expect-error
  socket.pipeToNative(3);
  if (!socket.spliceTo || !socket.pipeToNative)
    return;

  // One of fd and stream
  socket.spliceTo({ fd: 3 });
  socket.spliceTo({ fd: file });
  socket.spliceTo({ stream });
  socket.spliceTo({ stream: socket });
  socket.spliceTo({ stream, fd: undefined });
  // @ts-expect-error
  socket.spliceTo();
  // @ts-expect-error
  socket.spliceTo({});
  // @ts-expect-error
  socket.spliceTo({ fd: 3, stream });
  // @ts-expect-error
  socket.spliceTo({ fd: '3' });
  // @ts-expect-error
  socket.spliceTo({ stream: process.stdin as NodeJS.ReadableStream });
  // @ts-expect-error
  stream.spliceTo({ fd: 3 });

  // The other options
  const options: TLSSpliceOptions = {
    fd: 3,
    direction: 'in',
    autoClose: true,
    end: false,
    framing: 'u16be',
    highWaterMark: 65536,
    signal,
  };
  socket.spliceTo({ ...options, direction: 'out', framing: 'ip' });
  socket.spliceTo({ fd: 3, direction: undefined, autoClose: undefined, end: undefined, framing: undefined });
  socket.spliceTo({ fd: 3, highWaterMark: undefined, signal: undefined });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, direction: 'both' });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, autoClose: 1 });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, end: 'no' });
  socket.spliceTo({ fd: 3, framing: 'ipv6', maxPacketSize: 1280 });
  socket.spliceTo({ fd: 3, framing: 'ipv4', maxPacketSize: undefined });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, framing: 'ipv5' });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, maxPacketSize: '1280' });
  socket.spliceTo({ stream, head: Buffer.from('head') });
  socket.spliceTo({ stream, head: new Uint16Array(1) });
  // @ts-expect-error
  socket.spliceTo({ stream, head: 'head' });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, highWaterMark: 65536n });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, signal: new AbortController() });
  // @ts-expect-error
  socket.spliceTo({ fd: 3, bufferSize: 65536 });

  // pipeToNative()
  const stats = await socket.pipeToNative(stream);
  same<typeof stats, TLSSpliceStats>(true);
  await socket.pipeToNative(3, { direction: 'out', signal });
  await socket.pipeToNative(file, { autoClose: true });
  await socket.pipeToNative(socket, {});
  await socket.pipeToNative(stream, { signal }).catch((err: TLSSpliceAbortError) => {
    same<typeof err.stats, TLSSpliceStats>(true);
    return err.cause;
  });
  // @ts-expect-error
  await socket.pipeToNative();
  // @ts-expect-error
  await socket.pipeToNative({ fd: 3 });
  // @ts-expect-error
  await socket.pipeToNative(3, { stream });

  // The splice
  const splice = socket.spliceTo({ fd: 3 }).start().ref().unref();
  same<typeof splice, tls.TLSSplice>(true);
  same<typeof splice, TLSSplice>(true);
  same<typeof splice.state, 'idle' | 'running' | 'stopping' | 'closed'>(true);
  same<Awaited<ReturnType<typeof splice.stop>>, TLSSpliceStats>(true);
  same<Awaited<typeof splice.finished>, TLSSpliceStats>(true);
  if (stream instanceof tls.TLSSplice)
    await stream.stop();
  {
    await using scoped = socket.spliceTo({ fd: 3 });
    scoped.start();
  }
  // @ts-expect-error
  new tls.TLSSplice(socket, {});
  // @ts-expect-error
  splice.state = 'closed';
  // @ts-expect-error
  splice.finished();
  // @ts-expect-error
  using wrong = splice;

  // The stats
  const { bytesIn, closeNotify, reason } = splice.stats;
  same<typeof bytesIn, number>(true);
  same<typeof closeNotify, boolean>(true);
  same<typeof reason, 'end' | 'stopped' | 'aborted' | 'destroyed' | 'error' | null>(true);
  // @ts-expect-error
  splice.stats.bytes;

  // The events
  splice.on('error', (err) => same<typeof err, tls.TLSSpliceError>(true));
  splice.on('error', (err: NodeJS.ErrnoException) => err.errno);
  splice.on('error', (err) => same<typeof err.side, 'tls' | 'endpoint' | undefined>(true));
  same<typeof splice.errored, tls.TLSSpliceError | null>(true);
  // @ts-expect-error
  splice.errored = null;
  splice.once('close', (stats) => same<typeof stats, TLSSpliceStats>(true));
  splice.on('error', (err) => {
    if (err.code === 'ERR_TLS_SPLICE_FRAMING')
      return (err as TLSSpliceFramingError).offset.toFixed();
    return err.syscall;
  });
  // @ts-expect-error
  splice.on('close', (hadError: boolean) => hadError);
}

same<Parameters<typeof all>[0], tls.TLSSocket>(true);

// The other name of the module has the same TLSSocket.
same<import('tls').TLSSocket, tls.TLSSocket>(true);
