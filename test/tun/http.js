'use strict';

// An HTTP server: GET gives a file, PUT answers with the hash of what it gets.
// usage: node http.js ADDRESS FILE

const { createHash } = require('crypto');
const fs = require('fs');
const http = require('http');

const { 2: address, 3: file } = process.argv;

http.createServer((req, res) => {
  if (req.method === 'PUT') {
    const hash = createHash('sha256');
    req.on('data', (chunk) => hash.update(chunk));
    req.on('end', () => res.end(hash.digest('hex')));
  } else {
    fs.createReadStream(file).pipe(res);
  }
}).listen(0, address, function() {
  console.log(`listening on ${this.address().port}`);
});
