// Declares tlsSocket.spliceTo(), tlsSocket.pipeToNative() and tls.TLSSplice, on top of @types/node, of which the versions
// 20 to 26 fit. They are in the module 'node:tls': what is only there @types/node 24 and earlier do not export from 'tls'.
// In a Node.js without splices all three are undefined, so that the methods are optional: `if (socket.pipeToNative)`.

import type { EventEmitter } from 'node:events';
import type { FileHandle } from 'node:fs/promises';
import type { Socket } from 'node:net';

declare module 'node:tls' {
    interface TLSSocket {
        /**
         * Prepares to join the socket to an endpoint. Nothing moves before {@link TLSSplice.start}.
         * @throws `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`, `ERR_OUT_OF_RANGE`, `ERR_INVALID_STATE`,
         * `ERR_SOCKET_CLOSED`, `ERR_FEATURE_UNAVAILABLE_ON_PLATFORM`, and system errors such as `EBADF`.
         */
        spliceTo?(options: TLSSpliceOptions): TLSSplice;
        /**
         * Splices the socket to a file descriptor or stream until both sides have ended. In any other case the promise is
         * rejected and the socket is destroyed, as `stream.pipeline()` does, both with the error of the splice, with a
         * {@link TLSSpliceAbortError} if the `signal` is aborted, and with `ERR_STREAM_PREMATURE_CLOSE` if the socket is
         * destroyed without an error. Meanwhile nobody has to listen to `'error'`. If the splice cannot be started, the
         * promise is rejected and the socket is left as it is. With `autoClose` the target is closed when the promise is
         * settled.
         */
        pipeToNative?(target: number | FileHandle | Socket, options?: TLSSpliceCommonOptions): Promise<TLSSpliceStats>;
    }

    interface ConnectionOptions {
        /**
         * Whether the socket may go on sending after the peer has ended, as proxies need it. `tls.connect()` takes this
         * option, although @types/node does not declare it.
         * @default false
         */
        allowHalfOpen?: boolean | undefined;
    }

    /** `'in'` is what the TLS peer sends, `'out'` what is sent to it. */
    type TLSSpliceDirection = 'in' | 'out' | 'duplex';
    type TLSSpliceFraming = 'auto' | 'raw' | 'ip' | 'ipv4' | 'ipv6' | 'u16be';
    type TLSSpliceState = 'idle' | 'running' | 'stopping' | 'closed';
    type TLSSpliceReason = 'end' | 'stopped' | 'aborted' | 'destroyed' | 'error';

    interface TLSSpliceCommonOptions {
        /**
         * `'in'`: what the TLS peer sends goes to the endpoint. `'out'`: what the endpoint yields is sent to the TLS
         * peer. `'duplex'`: both.
         * @default 'duplex'
         */
        direction?: TLSSpliceDirection | undefined;
        /**
         * Whether to close the endpoint at the end of the splice, whatever ends the splice. The splice closes after its
         * endpoint. If both sides have ended, a stream first writes what it has been given; otherwise the stream is
         * closed at once.
         * @default false
         */
        autoClose?: boolean | undefined;
        /**
         * Whether to pass the end of one side on to the other.
         * @default true
         */
        end?: boolean | undefined;
        /**
         * How packets are delimited in the TLS connection.
         * @default 'auto'
         */
        framing?: TLSSpliceFraming | undefined;
        /**
         * The size of the longest packet in bytes: what is longer is no packet. By default whatever the framing allows.
         */
        maxPacketSize?: number | undefined;
        /**
         * Bytes that go to the endpoint before anything else, such as the `head` of `'connect'` and `'upgrade'`. Not with
         * `direction: 'out'`.
         */
        head?: NodeJS.ArrayBufferView | undefined;
        /**
         * The most bytes to hold in each direction while the receiving side is slower.
         * @default 262144
         */
        highWaterMark?: number | undefined;
        /**
         * Aborting it is the same as calling {@link TLSSplice.stop}, except for the `reason`. With `pipeToNative()` it
         * also destroys the socket.
         */
        signal?: AbortSignal | undefined;
    }

    interface TLSSpliceFdOptions extends TLSSpliceCommonOptions {
        /** A file descriptor that is open for the `direction`. */
        fd: number | FileHandle;
        stream?: undefined;
    }

    interface TLSSpliceStreamOptions extends TLSSpliceCommonOptions {
        /** A socket that is connected or connecting, which may be a `TLSSocket`. */
        stream: Socket;
        fd?: undefined;
    }

    /** Either `fd` or `stream`, and the options that they have in common. */
    type TLSSpliceOptions = TLSSpliceFdOptions | TLSSpliceStreamOptions;

    interface TLSSpliceStats {
        /** Bytes of cleartext that the endpoint has taken. */
        bytesIn: number;
        /** Bytes of cleartext that have been read from the endpoint and encrypted. */
        bytesOut: number;
        /** Packets that the endpoint has taken; 0 with `framing: 'raw'`. */
        packetsIn: number;
        /** Packets that have been read from the endpoint; 0 with `framing: 'raw'`. */
        packetsOut: number;
        /** The bytes of the largest packet that the endpoint has taken. */
        largestPacketIn: number;
        /** The bytes of the largest packet that has been read from the endpoint. */
        largestPacketOut: number;
        /** Packets that the endpoint has refused: the sum of the five counters below. */
        dropsIn: number;
        /** Packets from the endpoint that the framing cannot carry, or that were cut off. */
        dropsOut: number;
        dropsEINVAL: number;
        dropsEMSGSIZE: number;
        dropsECONNREFUSED: number;
        dropsEIO: number;
        dropsENOBUFS: number;
        /** How many times several packets were written to a TUN device as one. */
        superPacketsIn: number;
        /** How many times several packets were read from a TUN device as one. */
        superPacketsOut: number;
        /** Of how many protocols (TCP, UDP) packets are written one by one, because the kernel has refused them as one. */
        superPacketsRefused: number;
        /** How many times the TLS connection was not read because the endpoint was full. Files do not count. */
        stallsIn: number;
        /** How many times the endpoint was not read because the TLS connection was full. */
        stallsOut: number;
        /** The most bytes that were held for the endpoint. */
        peakBufferedIn: number;
        /** The most bytes that were held for the TLS peer, as cleartext or ciphertext. */
        peakBufferedOut: number;
        /** Whether the peer's `close_notify` has been read. */
        closeNotify: boolean;
        /** `null` while the splice is running. */
        reason: TLSSpliceReason | null;
    }

    /** The error of a splice. */
    interface TLSSpliceError extends NodeJS.ErrnoException {
        /**
         * Which side has failed: `'tls'` is the socket, its TLS session, and the stream below it. A frozen error that was
         * passed to `destroy()` does not have this property.
         */
        side?: 'tls' | 'endpoint' | undefined;
    }

    /** The error of `pipeToNative()` after its `signal` was aborted. */
    interface TLSSpliceAbortError extends Error {
        name: 'AbortError';
        code: 'ABORT_ERR';
        /** The `reason` of the signal. */
        cause: unknown;
        stats: TLSSpliceStats;
    }

    interface TLSSpliceEventMap {
        /**
         * At most once, before `'close'`. Without a listener the error is thrown, unless `finished` was read, or `stop()`
         * or `pipeToNative()` was called.
         */
        error: [error: TLSSpliceError];
        /** Exactly once, when the splice closes. */
        close: [stats: TLSSpliceStats];
    }

    /** The error if there is no packet where a packet has to begin. */
    interface TLSSpliceFramingError extends TLSSpliceError {
        code: 'ERR_TLS_SPLICE_FRAMING';
        direction: 'in' | 'out';
        /** How many bytes that direction has before the place where a packet has to begin. */
        offset: number;
    }

    /**
     * Joins a socket to a file descriptor or stream, its endpoint, and moves cleartext between the two without running
     * JavaScript for each chunk. Made by {@link TLSSocket.spliceTo}.
     */
    class TLSSplice extends EventEmitter<TLSSpliceEventMap> implements AsyncDisposable {
        private constructor();
        readonly state: TLSSpliceState;
        /** The error that the splice has failed with, whether it was emitted or not. */
        readonly errored: TLSSpliceError | null;
        /** A new object at each access. */
        readonly stats: TLSSpliceStats;
        /**
         * Fulfilled with the stats when the splice closes, or rejected with its error. A rejection is never reported as
         * unhandled.
         */
        readonly finished: Promise<TLSSpliceStats>;
        /**
         * Takes over the directions, at once or when the handshake is done. If the splice is running already, nothing
         * happens.
         * @throws As {@link TLSSocket.spliceTo}, and `ERR_INVALID_STATE` if the splice has been stopped or has closed, or
         * if another splice has a direction.
         */
        start(): this;
        /**
         * Ends the splice, and gives the socket back to JavaScript. The socket is destroyed instead if a renegotiation, a
         * stream below the socket or a write to a file keeps the splice waiting for two seconds. The promise is never
         * rejected; each call returns the same promise.
         */
        stop(): Promise<TLSSpliceStats>;
        /** Opposite of {@link TLSSplice.unref}. */
        ref(): this;
        /** The endpoint no longer keeps the event loop active. The socket still does. */
        unref(): this;
        /** Calls {@link TLSSplice.stop} and waits for it. */
        [Symbol.asyncDispose](): Promise<void>;
    }
}
