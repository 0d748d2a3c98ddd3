// A source for tus-js-client that grows, and that can be read from any offset: an upload may go back as far as it wants.
class GrowingSource {
  #copy
  size = null // not known before the end

  constructor(copy) {
    this.#copy = copy
  }

  /** At least one byte from `start` on, as soon as there is one; null when there is none and never will be. */
  async slice(start, end) {
    await this.#copy.reach(start)
    const last = Math.min(end, this.#copy.available)
    if (start >= last) return { value: null, done: true }
    return { value: await this.#copy.read(start, last), done: this.#copy.ended && last === this.#copy.size }
  }

  close() {}
}

/** The `fileReader` of tus-js-client for a `LocalCopy`. */
export const growingReader = {
  async openFile(copy) {
    return new GrowingSource(copy)
  },
}
