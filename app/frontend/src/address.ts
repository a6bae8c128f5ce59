/** Addresses without what may be personal in them. */

/**
 * Return a URL of this page's own origin without user, query and fragment. Of any other, such as a browser extension's,
 * return the scheme alone: which extensions somebody has is nobody's business.
 */
export function publicAddress(url: string, origin: string): string {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (!parsed) return "invalid:";
  return parsed.origin === origin ? parsed.origin + parsed.pathname : parsed.protocol;
}

/** Do the same to every address in a text, such as a stack trace. */
export function publicText(text: string, origin: string): string {
  return text.replace(/\b[a-z][a-z0-9+.-]*:\/\/[^\s()'"]+/gi, (url) => publicAddress(url, origin));
}
