'use strict';

// A heap snapshot shows a splice, what it holds, and that it keeps the TLSWrap.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fs = require('fs');
const { setImmediate } = require('timers/promises');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { validateByRetainingPath, validateByRetainingPathFromNodes } = require('../common/heap');
const { MiB, fifo, run, socketPair, tlsPair } = require('../common/tls-splice');

function validate(...fields) {
  const nodes = validateByRetainingPath('Node / TLSSplice', []);
  for (const { 0: name, 1: edge } of fields)
    validateByRetainingPathFromNodes(nodes, 'Node / TLSSplice', [{ node_name: name, edge_name: edge }]);
}

run(async () => {
  const { client, server } = await tlsPair();
  assert.strictEqual(validateByRetainingPath('Node / TLSSplice', []).length, 0);

  const { 0: endpoint, 1: other } = await socketPair();
  const ofStream = client.spliceTo({ stream: endpoint, direction: 'out' }).start();
  validate(['Node / TLSWrap', 'tls_wrap'], ['TLSSplice', 'native_to_javascript'],
           ['Node / stats', 'stats'], ['Node / StreamEndpoint', 'endpoint']);
  other.end();
  await ofStream.finished;

  const ofFile = client.spliceTo({ fd: fs.openSync(__filename), direction: 'out', autoClose: true });
  validate(['Node / FileEndpoint', 'endpoint']);
  await ofFile.stop();

  // Nobody reads this one.
  const { reader, writer } = fifo();
  const ofPipe = client.spliceTo({ fd: writer, direction: 'in', autoClose: true }).start();
  server.write(Buffer.alloc(1 * MiB));
  while (ofPipe.stats.stallsIn === 0)
    await setImmediate();
  validate(['Node / tls_splice', 'held'], ['Node / PollEndpoint', 'endpoint']);
  await ofPipe.stop();
  fs.closeSync(reader);
  client.destroy();
});
