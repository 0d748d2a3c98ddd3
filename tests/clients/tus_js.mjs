// One upload with tus-js-client: the scenario is JSON on standard input, what happened is printed as JSON lines.
import { createReadStream, readFileSync } from 'node:fs'
import { PassThrough, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import tus from 'tus-js-client'

const RECORDED = [
  'Content-Type',
  'Tus-Resumable',
  'Upload-Concat',
  'Upload-Defer-Length',
  'Upload-Length',
  'Upload-Metadata',
  'Upload-Offset',
  'X-HTTP-Method-Override',
]

function print(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

/** Options that write every request and its answer to `requests`. */
function recorder(requests) {
  const entries = new Map()
  return {
    onBeforeRequest(request) {
      const headers = {}
      for (const name of RECORDED) {
        const value = request.getHeader(name)
        if (value !== undefined) headers[name.toLowerCase()] = value
      }
      const entry = {
        method: request.getMethod(),
        url: request.getURL(),
        headers,
        status: null,
        answered_offset: null,
      }
      entries.set(request, entry)
      requests.push(entry)
    },
    onAfterResponse(request, response) {
      const entry = entries.get(request)
      entry.status = response.getStatus()
      entry.answered_offset = response.getHeader('Upload-Offset') ?? null
    },
  }
}

/**
 * Options of a page whose tokens expire: each of `tokens`, [token, number of requests], is sent so often, the last one
 * for ever. A refusal is tried again, as docs/security.md advises.
 */
function renewal(tokens) {
  const left = tokens.map(([token, requests]) => ({ token, requests }))
  return {
    async onBeforeRequest(request) {
      await delay(1) // to ask the application for a token takes time
      if (left.length > 1 && left[0].requests === 0) left.shift()
      left[0].requests -= 1
      request.setHeader('Authorization', `Bearer ${left[0].token}`)
    },
    onShouldRetry(error) {
      const status = error.originalResponse ? error.originalResponse.getStatus() : 0
      return status === 0 || status === 401 || status === 409 || status === 423 || status >= 500
    },
  }
}

/** Both callbacks before a request, one after the other. */
function both(first, second) {
  return async (request) => {
    await first(request)
    await second(request)
  }
}

/** A file reader whose body stops once when `bytes` of the file were given: the request stays open, nothing follows. */
class HeldReader {
  constructor(bytes) {
    this.bytes = bytes
    this.held = false
  }

  async openFile(file) {
    return {
      size: file.length,
      slice: async (start, end) => {
        const value = this.body(file.subarray(start, end), start)
        value.size = Math.min(end, file.length) - start
        return { value, done: end >= file.length }
      },
      close() {},
    }
  }

  body(data, start) {
    const given = this.bytes - start
    if (this.held || given < 0 || given >= data.length) return data
    this.held = true
    const pieces = [data.subarray(0, given)]
    return new Readable({
      read() {
        if (pieces.length > 0) this.push(pieces.pop())
      },
    })
  }
}

/** Wait until the server has stored this many bytes. */
async function stored(url, bytes) {
  for (;;) {
    const answer = await fetch(url, { method: 'HEAD', headers: { 'Tus-Resumable': '1.0.0' } })
    if (Number(answer.headers.get('Upload-Offset')) >= bytes) return
    await delay(50)
  }
}

function openSource(kind, path) {
  if (kind === 'buffer') return readFileSync(path)
  if (kind === 'file') return createReadStream(path)
  return createReadStream(path).pipe(new PassThrough())
}

const scenario = JSON.parse(await text(process.stdin))
const requests = []
const holding = scenario.hold_after == null ? null : new HeldReader(scenario.hold_after)
let upload
let onCreated
const created = new Promise((resolve) => {
  onCreated = resolve
})
const recording = recorder(requests)
const renewing = scenario.tokens == null ? {} : renewal(scenario.tokens)
if (renewing.onBeforeRequest) {
  recording.onBeforeRequest = both(recording.onBeforeRequest, renewing.onBeforeRequest)
}
const finished = new Promise((resolve) => {
  upload = new tus.Upload(openSource(scenario.source, scenario.path), {
    retryDelays: null,
    ...scenario.options,
    ...renewing,
    ...recording,
    ...(holding ? { fileReader: holding } : {}),
    onUploadUrlAvailable: () => onCreated(),
    onSuccess: () => resolve(null),
    onError: (error) => resolve(String(error)),
  })
})
upload.start()

let error = null
if (holding) {
  await created
  await stored(upload.url, scenario.hold_after)
  print({ event: 'held', url: upload.url })
} else {
  error = await finished
}
if (scenario.ending === 'abort') await upload.abort()
else if (scenario.ending === 'terminate') await upload.abort(true)
else error = await finished

print({ url: upload.url, error, requests })
