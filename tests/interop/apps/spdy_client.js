// Node.js's SPDY client (npm's spdy) against a port: what has come of each task, as JSON.
'use strict'

const crypto = require('crypto')
const https = require('https')
const spdy = require('spdy')

const agent = spdy.createAgent({
  host: 'localhost',
  port: Number(process.argv[2]),
  rejectUnauthorized: false,
  spdy: { protocols: ['spdy/3.1', 'http/1.1'] }
})
const found = { errors: [], settings: {} }
agent.on('error', (error) => found.errors.push(String(error)))

function ask (path, options, body) {
  return new Promise((resolve, reject) => {
    const request = https.request({ agent, host: 'localhost', path, ...options }, (response) => {
      const hash = crypto.createHash('sha256')
      const parts = []
      response.on('data', (part) => { hash.update(part); parts.push(part) })
      response.on('end', () => resolve({
        status: response.statusCode,
        length: parts.reduce((sum, part) => sum + part.length, 0),
        sha256: hash.digest('hex'),
        text: Buffer.concat(parts).subarray(0, 4096).toString()
      }))
    })
    request.on('error', reject)
    request.end(body)
  })
}

// Of no known length. By the stream itself: beneath today's Node.js, request.end() is not always
// seen to be the end.
function upload (connection, path, body) {
  return new Promise((resolve, reject) => {
    connection.request({ method: 'POST', path, host: 'localhost' }, (error, stream) => {
      if (error) return reject(error)
      let text = ''
      stream.on('response', (status) => {
        stream.on('data', (part) => { text += part })
        stream.on('end', () => resolve({ status, text }))
      })
      stream.on('error', reject)
      stream.write(body)
      stream.sendHeaders({ 'x-sum': '1' })
      stream.end()
    })
  })
}

function giveUp (path) {
  return new Promise((resolve, reject) => {
    const request = https.request({ agent, host: 'localhost', path }, (response) => {
      response.once('data', () => {
        request.abort()
        resolve()
      })
    })
    request.on('error', reject)
    request.end()
  })
}

async function main () {
  const connection = await new Promise((resolve) => {
    agent.once('_connect', () => resolve(agent._spdyState.connection))
  })
  connection.on('frame', (frame) => {
    if (frame.type === 'SETTINGS') Object.assign(found.settings, frame.settings)
  })
  found.get = await ask('/env?a=b')
  const body = Buffer.alloc(300000, 'x')
  found.post = await ask('/digest', { method: 'POST', headers: { 'Content-Length': 300000 } }, body)
  found.unknown = await upload(connection, '/digest', body)
  found.large = await ask('/download?size=3000000')
  found.parallel = await Promise.all(
    Array.from({ length: 50 }, (_, number) => ask(`/env?n=${number}`))
  )
  await giveUp('/download?size=50000000')
  await new Promise((resolve) => connection.ping(resolve))
  found.after = await ask('/env')
}

main().then(
  () => process.stdout.write(JSON.stringify(found), () => process.exit(0)),
  (error) => { console.error(error); process.exit(1) }
)
