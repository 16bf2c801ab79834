'use strict';

// usage: NODE_EXTRA_CA_CERTS=FILE node websocket-client.js URL
// websocket-client.py with the WebSocket that Node has; at /bye it only listens.

const assert = require('assert');
const { createHash, randomBytes } = require('crypto');

const { 2: url } = process.argv;
const kSizes = [0, 1, 125, 126, 65535, 65536, 3 << 20, 1];
const messages = url.endsWith('/bye') ? [] : kSizes.map((size) => randomBytes(size));
const socket = new globalThis.WebSocket(url);
socket.binaryType = 'arraybuffer';
socket.onerror = ({ error }) => { throw error; };
socket.onopen = () => messages.forEach((message) => socket.send(message));
socket.onclose = ({ code, reason }) => {
  assert.strictEqual(messages.length, 0);
  console.log(`closed ${code} ${reason}`);
};
socket.onmessage = ({ data }) => {
  const { 0: message } = messages;
  if (typeof data === 'string') {
    assert.strictEqual(data, createHash('sha256').update(message).digest('hex'));
    messages.shift();
    if (messages.length === 0)
      socket.close(4002, 'done');
  } else {
    assert.ok(message.equals(Buffer.from(data)));
  }
};
