'use strict';

// What else a handle is: an EventEmitter, readable, disposable, and a resource
// with a name that keeps the event loop alive unless told not to.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { createHook } = require('async_hooks');
const { EventEmitter, once } = require('events');
const fs = require('fs');
const path = require('path');
const tls = require('tls');
const { inspect } = require('util');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  record, run, socketPair, tlsPair,
} = require('../common/tls-splice');

// Once, however many there are
common.expectWarning(
  'ExperimentalWarning',
  'tlsSocket.spliceTo() is an experimental feature and might change at any time');

const types = new Set();
createHook({ init(id, type) { types.add(type); } }).enable();

// The documentation names all stats, and its list has no others.
function checkDocumentation(stats) {
  const file = path.join(__dirname, '../../doc/api/tls.md');
  const text = fs.readFileSync(file, { encoding: 'utf8' });
  const { 1: section } = /^### `splice\.stats`$([^]*?)^##/m.exec(text);
  for (const name of stats)
    assert(section.includes(`\`${name}\``), name);
  for (const { 1: names } of section.matchAll(/^ {2}\* (.*?) \{/gm)) {
    for (const name of names.match(/\w+/g))
      assert(stats.includes(name), name);
  }
}


run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint });
  assert(splice instanceof tls.TLSSplice);
  assert(splice instanceof EventEmitter);
  assert(types.has('TLSSPLICE'));
  assert.strictEqual(splice.state, 'idle');
  checkDocumentation(Object.keys(splice.stats));
  assert.strictEqual(splice.stats.reason, null);
  assert.strictEqual(splice.ref(), splice);
  assert.strictEqual(splice.unref(), splice);
  splice.ref();

  // Nothing is there to be set.
  for (const name of ['errored', 'state', 'stats', 'finished']) {
    assert.throws(() => { splice[name] = 1; }, TypeError);
    assert.strictEqual(Object.hasOwn(splice, name), false);
  }

  splice.start();
  client.write('four');
  await once(other, 'data');
  assert(process.getActiveResourcesInfo().includes('TLSSplice') ||
         process.getActiveResourcesInfo().includes('TLSSPLICE'),
         `${process.getActiveResourcesInfo()}`);

  // Of no more than a few lines, and without the keys of the socket
  const text = inspect(splice);
  assert.match(text, /^TLSSplice \{/);
  assert.match(text, /state: 'running'/);
  assert.match(text, /bytesIn: 4,/);
  assert(text.length < 1000, text);
  assert.strictEqual(inspect({ a: { b: { splice } } }).includes('bytesIn'), false);

  const closed = once(splice, 'close');
  const { stats } = splice;
  await splice.stop();
  assert.deepStrictEqual((await closed)[0], { ...stats, reason: 'stopped' });
  assert.match(inspect(splice), /state: 'closed'/);
  splice.ref();
  splice.unref();
});

// `await using`
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  const events = record(splice, ['error', 'close']);
  assert.strictEqual(await splice[Symbol.asyncDispose](), undefined);
  assert.strictEqual(splice.state, 'closed');
  assert.deepStrictEqual(events, ['close']);
  await splice[Symbol.asyncDispose]();
  client.write('x');
  await once(server, 'data');
});

// The prototype of TLSSocket, and the names that others see
assert.strictEqual(tls.TLSSocket.prototype.spliceTo.name, 'spliceTo');
assert.strictEqual(tls.TLSSocket.prototype.spliceTo.length, 1);
assert.strictEqual(tls.TLSSocket.prototype.pipeToNative.name, 'pipeToNative');
assert.strictEqual('spliceTo' in require('net').Socket.prototype, false);
