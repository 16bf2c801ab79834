// tlsSocket.spliceTo() and pipeToNative(), for programs that have the `tls` of @types/node and run on a Node.js with
// splices. Another one has neither: there the two are undefined, and so is tls.TLSSplice.

import type { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';

declare module 'tls' {
    interface TLSSocket {
        /**
         * Prepares to join the socket to an endpoint. Nothing moves before {@link TLSSplice.start}.
         * @throws `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`, `ERR_OUT_OF_RANGE`, `ERR_INVALID_STATE`,
         * `ERR_SOCKET_CLOSED`, `ERR_FEATURE_UNAVAILABLE_ON_PLATFORM`, and system errors such as `EBADF`.
         */
        spliceTo(options: TLSSpliceOptions): TLSSplice;
        /**
         * Splices the socket to a file descriptor or stream until both sides have ended. The promise is rejected if the
         * splice fails, and the socket destroyed; also if the splice cannot be started, and then the socket is left as
         * it is. With `autoClose` the target is closed whenever the promise is settled.
         */
        pipeToNative(target: number | Socket, options?: TLSSpliceCommonOptions): Promise<TLSSpliceStats>;
    }

    interface ConnectionOptions {
        /**
         * Whether the socket may go on sending after the peer has ended. Node.js has had it for long, @types/node has
         * not; proxies need it.
         * @default false
         */
        allowHalfOpen?: boolean | undefined;
    }

    /** `'in'` is what the TLS peer sends, `'out'` what is sent to it. */
    type TLSSpliceDirection = 'in' | 'out' | 'duplex';
    type TLSSpliceFraming = 'auto' | 'raw' | 'ip' | 'u16be';
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
         * Close the endpoint at the end of the splice, however it ends. The splice is over only when that is done. At
         * the end of both sides a stream first writes what it has been given, otherwise it is closed at once.
         * @default false
         */
        autoClose?: boolean | undefined;
        /**
         * Pass the end of one side on to the other.
         * @default true
         */
        end?: boolean | undefined;
        /**
         * How packets are told apart in the TLS connection.
         * @default 'auto'
         */
        framing?: TLSSpliceFraming | undefined;
        /**
         * The most bytes to hold in each direction while the receiving side is slower.
         * @default 262144
         */
        highWaterMark?: number | undefined;
        /** Aborting it is the same as calling {@link TLSSplice.stop}, except for the `reason`. */
        signal?: AbortSignal | undefined;
    }

    interface TLSSpliceFdOptions extends TLSSpliceCommonOptions {
        /** A file descriptor that is open for the `direction`. */
        fd: number;
        stream?: undefined;
    }

    interface TLSSpliceStreamOptions extends TLSSpliceCommonOptions {
        /** A connected socket, which may be a `TLSSocket`. */
        stream: Socket;
        fd?: undefined;
    }

    /** One of `fd` and `stream`, and the rest. */
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
        /** Packets that the endpoint has refused, for whichever of the reasons below. */
        dropsIn: number;
        /** Packets from the endpoint that the framing cannot carry, or that were cut off. */
        dropsOut: number;
        dropsEINVAL: number;
        dropsEMSGSIZE: number;
        dropsECONNREFUSED: number;
        dropsEIO: number;
        dropsENOBUFS: number;
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

    /** What a splice fails with. */
    interface TLSSpliceError extends NodeJS.ErrnoException {
        /**
         * Where it comes from: the socket, its TLS session and what that runs over, or the endpoint. Not on what
         * `destroy()` was called with if that is frozen.
         */
        side?: 'tls' | 'endpoint' | undefined;
    }

    interface TLSSpliceEventMap {
        /** At most once, before `'close'`. Thrown if nobody listens, and nobody looks at a promise of the splice. */
        error: [error: TLSSpliceError];
        /** Exactly once, when the splice is over. */
        close: [stats: TLSSpliceStats];
    }

    /** What an error with the code `ERR_TLS_SPLICE_FRAMING` has: there is no packet where one would have to begin. */
    interface TLSSpliceFramingError extends TLSSpliceError {
        code: 'ERR_TLS_SPLICE_FRAMING';
        direction: 'in' | 'out';
        /** The bytes of that direction before the packet. */
        offset: number;
    }

    /**
     * Joins a socket to another file or stream of the operating system, its endpoint, and moves cleartext between the
     * two without running JavaScript for each chunk. Made by {@link TLSSocket.spliceTo}.
     */
    class TLSSplice extends EventEmitter<TLSSpliceEventMap> implements AsyncDisposable {
        private constructor();
        readonly state: TLSSpliceState;
        /** What the splice has failed with, whether it was emitted or not. */
        readonly errored: TLSSpliceError | null;
        /** A new object at each access. */
        readonly stats: TLSSpliceStats;
        /** For the stats at the end, or the error; a rejection of it is never reported as unhandled. */
        readonly finished: Promise<TLSSpliceStats>;
        /**
         * Takes over the directions, or does so when the handshake is done. Nothing happens while it is running.
         * @throws As {@link TLSSocket.spliceTo}, and `ERR_INVALID_STATE` if the splice is over or a direction is taken.
         */
        start(): this;
        /**
         * Ends the splice, and gives the socket back to JavaScript, or destroys that if its peer or a file keeps it waiting
         * for two seconds. Never rejected, and the same promise each time.
         */
        stop(): Promise<TLSSpliceStats>;
        /** Opposite of {@link TLSSplice.unref}. */
        ref(): this;
        /** Waiting for the endpoint no longer keeps the event loop active. The socket still does. */
        unref(): this;
        /** Calls {@link TLSSplice.stop} and waits for it. */
        [Symbol.asyncDispose](): Promise<void>;
    }
}
