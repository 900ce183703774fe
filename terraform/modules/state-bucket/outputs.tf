output "name" {
  description = "Name of the bucket, known when it is versioned, encrypted and closed."
  value       = aws_s3_bucket.state.id
  depends_on = [
    aws_s3_bucket_versioning.state, aws_s3_bucket_server_side_encryption_configuration.state,
    aws_s3_bucket_public_access_block.state, aws_s3_bucket_policy.state,
  ]
}

output "arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.state.arn
}
