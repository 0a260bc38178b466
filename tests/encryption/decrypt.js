// Decrypts as the existing Node tool does. Argument: key in hex. Standard input: one ENC: value per
// line. Standard output: per line the plaintext in hex, or "refused".
'use strict';
const { createDecipheriv } = require('node:crypto');

const key = Buffer.from(process.argv[2], 'hex');
const lines = require('node:fs').readFileSync(0, 'utf8').split('\n').slice(0, -1);
for (const line of lines) {
  const [, iv, tag, ciphertext] = line.split(':').map((field) => Buffer.from(field, 'hex'));
  try {
    const decipher = createDecipheriv('aes-256-gcm', key, iv);
    decipher.setAuthTag(tag);
    console.log(Buffer.concat([decipher.update(ciphertext), decipher.final()]).toString('hex'));
  } catch {
    console.log('refused');
  }
}
